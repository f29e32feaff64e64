"""The executor seam: takes tasks, gives outcomes. Scheduling, retries and commits belong to the driver."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ntkpipe.workers.tasks import Task, TaskResult


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why an attempt failed."""

    kind: str
    """The stable kind of an NtkPipeError, or ``exception``, ``worker-lost``, ``deadline``."""
    message: str
    counts: bool = True
    """Whether the attempt is held against the task; a task that waited behind another one on a lost worker was never
    started."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt at a task ended: exactly one of ``result`` and ``error`` is set."""

    task: Task
    result: TaskResult | None = None
    error: TaskError | None = None


class AbstractExecutor(ABC):
    """Workers that carry out tasks. A context manager: entering starts workers, leaving ends them."""

    @abstractmethod
    def __enter__(self) -> "AbstractExecutor":
        """Start the workers."""

    @abstractmethod
    def __exit__(self, *exception: object) -> None:
        """End everything that was started."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """How many tasks are worth having in flight."""

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Hand over a task; returns at once."""

    @abstractmethod
    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Return outcomes as they come, at least one unless the time is up. Lost workers are replaced here."""
