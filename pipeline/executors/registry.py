"""From the resources section to an executor; Ray is imported only when it is asked for."""

import os
import secrets
import sys

from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.pipeline.executors.base import AbstractExecutor
from ntkpipe.workers.tasks import WorkerSpec


def make_executor(resources: ResourcesConfig, spec: WorkerSpec) -> AbstractExecutor:
    """Return the executor that a configuration asks for, not yet started."""
    if resources.executor == "ray":
        _prepare_environment(resources.address)
        from ntkpipe.pipeline.executors.ray import RayExecutor

        return RayExecutor(
            spec, address=resources.address, num_workers=resources.workers, task_seconds=resources.task_seconds
        )
    from ntkpipe.pipeline.executors.serial import SerialExecutor

    return SerialExecutor(spec)


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
