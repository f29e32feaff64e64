"""The executor seam: takes tasks, gives outcomes. Scheduling, retries and commits belong to the driver."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from ntkpipe.configs.secrets import redacted
from ntkpipe.workers.tasks import MEMORY_KIND, Task, TaskResult, WorkerSpec

NOT_STARTED: Final = "not-started"
"""Kind of the failure of a task that its worker had not begun; it is held against nobody."""


@dataclass(frozen=True, slots=True)
class TaskError:
    """Why an attempt failed."""

    kind: str
    """The stable kind of an NtkPipeError, or ``exception``, ``worker-lost``, ``deadline``, ``memory``, or ``not-started``
    for a task that waited on a worker that was lost, or was given to one that was gone already."""
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
    worker: str = ""
    """Who had it, as ``host:process``; empty where it was nobody in particular."""


class AbstractExecutor(ABC):
    """Workers that carry out tasks. A context manager: entering starts workers, leaving ends them."""

    @abstractmethod
    def __enter__(self) -> "AbstractExecutor":
        """Start the workers."""

    @abstractmethod
    def __exit__(self, *exception: object) -> None:
        """End everything that was started."""

    @abstractmethod
    def now(self) -> float:
        """Return the time in seconds, from any beginning."""

    @property
    @abstractmethod
    def num_ready(self) -> int:
        """How many workers take tasks now."""

    @property
    @abstractmethod
    def num_wanted(self) -> int:
        """How many workers were asked for."""

    @abstractmethod
    def next_worker(self, num_left: int) -> int | None:
        """Return the number of the worker that the next task should be given to; None while all have enough.

        Args:
            num_left: How many tasks have not been handed out, this one included.
        """

    @abstractmethod
    def submit(self, worker: int, task: Task, halvings: int = 0) -> None:
        """Hand over a task; returns at once.

        Args:
            worker: That was named by :meth:`next_worker`.
            task: To be carried out.
            halvings: How many attempts at it have run out of memory.
        """

    @abstractmethod
    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Return outcomes as they come, at least one unless the time is up. Lost workers are replaced here.

        Raises:
            NtkPipeError: No worker can be started.
        """
