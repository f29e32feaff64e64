"""One worker: carries out tasks of a run, one at a time."""

import os
import platform
import resource
import socket
import sys
import time
from typing import final

import torch

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.configs.secrets import redacted
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.stages import analyze, derive, factor, features, kernel, moments, shared_solve, solve
from ntkpipe.workers.tasks import (
    MEMORY_KIND,
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
    Written,
)

ALLOCATION_ERRORS = ("not enough memory", "can't allocate memory")
"""In messages of PyTorch."""


@final
class Worker:
    """Holds what a run's tasks share and dispatches them to their stage."""

    def __init__(self, spec: WorkerSpec) -> None:
        sys.path += [folder for folder in spec.import_path if folder not in sys.path]
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self._context = WorkerContext(spec)

    @property
    def device(self) -> str:
        """What it computes on, as PyTorch names it.

        Raises:
            ConfigError: This machine has no such device.
        """
        return str(self._context.device)

    def run(self, task: Task, halvings: int = 0) -> TaskResult:
        """Compute a task and write its chunks.

        Args:
            task: What to do.
            halvings: How many attempts at it have run out of memory: so often are its batches cut in half.

        Returns:
            What the driver needs to commit the task.

        Raises:
            NtkPipeError: What the stage raises.
        """
        started, before = time.perf_counter(), self._context.chunks.reads
        self._context.use(self._context.spec.passes_of(task, halvings))
        try:
            written = self._carry_out(task)
        except Exception as error:
            if is_out_of_memory(error):
                self._context.forget()
            raise
        reads = self._context.chunks.reads - before
        return TaskResult(
            chunks=written.chunks,
            objects=written.objects,
            seconds=time.perf_counter() - started,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            versions={"python": platform.python_version(), "torch": torch.__version__},
            bytes_read=reads.num_bytes,
            chunks_read=reads.num_chunks,
            peak_bytes=peak_bytes(),
        )

    def _carry_out(self, task: Task) -> Written:
        match task:
            case MomentsTask():
                return moments.compute(self._context, task)
            case DeriveTask():
                return derive.compute(self._context, task)
            case FeaturesTask():
                return features.compute(self._context, task)
            case KernelTask():
                return kernel.compute(self._context, task)
            case FactorTask():
                return factor.compute(self._context, task)
            case SolveTask():
                return solve.compute(self._context, task)
            case SolveStepTask():
                return shared_solve.take_step(self._context, task)
            case SolvePartTask():
                return shared_solve.compute_part(self._context, task)
            case AnalysisTask():
                return analyze.compute(self._context, task)


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no memory, on the computing device or beside it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch's allocator for the CPU has no error class of its own.
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_ERRORS)


def describe_failure(error: Exception) -> tuple[str, str]:
    """Return the kind and message of an error that ended a task, fit to cross a process boundary."""
    if isinstance(error, NtkPipeError):
        return error.kind, error.message
    message = redacted(f"{type(error).__name__}: {error}")
    if is_out_of_memory(error):
        return MEMORY_KIND, f"ran out of memory: {message}"
    return "exception", message
