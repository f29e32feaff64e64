"""From the resources section to an executor; Ray is imported only when it is asked for."""

import os
import secrets
import sys
from collections.abc import Callable

from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.pipeline.events import Observer
from ntkpipe.pipeline.executors.base import AbstractExecutor
from ntkpipe.pipeline.scheduling.fleet import Fleet
from ntkpipe.workers.sources.model import check_device
from ntkpipe.workers.tasks import WorkerSpec


def make_executor(
    resources: ResourcesConfig,
    spec: WorkerSpec,
    tell: Callable[..., None] | None = None,
    note: Callable[[str], None] | None = None,
) -> AbstractExecutor:
    """Return the executor that a configuration asks for, not yet started.

    Args:
        resources: Of the run.
        spec: For its workers.
        tell: Is told what becomes of workers, as fields of an event.
        note: Is told what a person should know of them.

    Raises:
        ConfigError: No worker could have the device that is asked for.
    """
    if resources.executor == "ray":
        for pool in resources.worker_pools:
            check_device(pool.device, is_here=resources.address == "local")
        _prepare_environment(resources.address)
        from ntkpipe.pipeline.executors.ray import RayWorkers

        return Fleet(
            RayWorkers(spec, address=resources.address, num_workers=resources.num_workers),
            spec,
            resources.worker_pools,
            task_seconds=resources.task_seconds,
            start_seconds=resources.start_seconds,
            slow_factor=resources.slow_factor,
            tell=tell,
            note=note,
        )
    from ntkpipe.pipeline.executors.serial import SerialExecutor

    return SerialExecutor(spec)


def make_observers(resources: ResourcesConfig) -> tuple[Observer, ...]:
    """Return who else is to watch a run, such as the metrics of a cluster; its executor must have been entered."""
    if resources.executor != "ray":
        return ()
    from ntkpipe.pipeline.executors.metrics import RayMetrics

    return (RayMetrics(),)


def _prepare_environment(address: str) -> None:
    """Set what Ray reads once, when it is first imported.

    A private Ray gets a token of its own: Ray would otherwise keep one in the home directory, readable by everybody. If
    the caller has imported Ray before, its settings stand.
    """
    if "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
