"""One worker: carries out tasks of a run, one at a time."""

import os
import platform
import socket
import sys
import time
from typing import final

import torch

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.stages import analyze, derive, factor, features, kernel, moments, shared_solve, solve
from ntkpipe.workers.tasks import (
    AnalysisTask,
    DeriveTask,
    FactorTask,
    FeaturesTask,
    KernelTask,
    MomentsTask,
    SolvePartTask,
    SolveStepTask,
    SolveTask,
    Task,
    TaskResult,
    WorkerSpec,
)


@final
class Worker:
    """Holds what a run's tasks share and dispatches them to their stage."""

    def __init__(self, spec: WorkerSpec) -> None:
        sys.path += [folder for folder in spec.import_path if folder not in sys.path]
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self._context = WorkerContext(spec)

    def run(self, task: Task) -> TaskResult:
        """Compute a task and write its chunks.

        Returns:
            What the driver needs to commit the task.

        Raises:
            NtkPipeError: What the stage raises.
        """
        started = time.perf_counter()
        match task:
            case MomentsTask():
                written = moments.compute(self._context, task)
            case DeriveTask():
                written = derive.compute(self._context, task)
            case FeaturesTask():
                written = features.compute(self._context, task)
            case KernelTask():
                written = kernel.compute(self._context, task)
            case FactorTask():
                written = factor.compute(self._context, task)
            case SolveTask():
                written = solve.compute(self._context, task)
            case SolveStepTask():
                written = shared_solve.take_step(self._context, task)
            case SolvePartTask():
                written = shared_solve.compute_part(self._context, task)
            case AnalysisTask():
                written = analyze.compute(self._context, task)
        return TaskResult(
            chunks=written.chunks,
            objects=written.objects,
            seconds=time.perf_counter() - started,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            versions={"python": platform.python_version(), "torch": torch.__version__},
        )


def describe_failure(error: Exception) -> tuple[str, str]:
    """Return the kind and message of an error that ended a task, fit to cross a process boundary."""
    if isinstance(error, NtkPipeError):
        return error.kind, error.message
    return "exception", f"{type(error).__name__}: {error}"
