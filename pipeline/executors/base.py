"""The executor seam: takes tasks, gives outcomes. Scheduling, retries and commits belong to the driver."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ntkpipe.configs.secrets import redacted
from ntkpipe.workers.tasks import MEMORY_KIND, Task, TaskResult, WorkerSpec


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why an attempt failed."""

    kind: str
    """The stable kind of an NtkPipeError, or ``exception``, ``worker-lost``, ``deadline``, ``memory``, or ``not-started``
    for a task that waited behind another one on a worker that was lost."""
    message: str
    counts: bool = True
    """Whether the attempt is held against the task: not if it was never started, or can be made with less memory."""

    def __post_init__(self) -> None:
        """Leave no secrets in the message, wherever it goes from here."""
        object.__setattr__(self, "message", redacted(self.message))


def attempt_error(spec: WorkerSpec, task: Task, halvings: int, kind: str, message: str) -> TaskError:
    """Return how an attempt failed; one that ran out of memory is not held against a task whose batches can be halved."""
    return TaskError(kind, message, counts=kind != MEMORY_KIND or not spec.can_halve(task, halvings))


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
        """How many tasks are worth having in flight now; 0 while no worker is ready."""

    @abstractmethod
    def submit(self, task: Task, halvings: int = 0) -> None:
        """Hand over a task; returns at once.

        Args:
            task: To be carried out.
            halvings: How many attempts at it have run out of memory.
        """

    @abstractmethod
    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Return outcomes as they come, at least one unless the time is up. Lost workers are replaced here.

        Raises:
            NtkPipeError: No worker can be started.
        """
