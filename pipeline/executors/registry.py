"""From the resources section to an executor; Ray is imported only when it is asked for."""

from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.pipeline.executors.base import AbstractExecutor
from ntkpipe.workers.tasks import WorkerSpec


def make_executor(resources: ResourcesConfig, spec: WorkerSpec) -> AbstractExecutor:
    """Return the executor that a configuration asks for, not yet started."""
    if resources.executor == "ray":
        from ntkpipe.pipeline.executors.ray import RayExecutor

        return RayExecutor(
            spec, address=resources.address, num_workers=resources.workers, task_seconds=resources.task_seconds
        )
    from ntkpipe.pipeline.executors.serial import SerialExecutor

    return SerialExecutor(spec)
