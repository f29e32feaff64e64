"""The seam below the fleet: processes that are started, given tasks, listened to and ended. No policy lives here."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ntkpipe.configs.resources import PoolConfig
from ntkpipe.workers.tasks import Task, TaskResult

Failed = tuple[str, str]
"""The kind and the message of an error."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has started and can be given tasks."""

    worker: int
    label: str
    """``host:process``, as its results are signed."""
    device: str
    """That it computes on."""


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A worker that was started has not come up, and will not."""

    worker: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A worker is done with the first of the tasks that it has."""

    worker: int
    answer: TaskResult | Failed


@dataclass(frozen=True, slots=True)
class Draining:
    """A worker will be gone before long: it, or its machine, was told to end. What it is doing may still be finished."""

    worker: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone, with all the tasks that it had."""

    worker: int
    kind: str
    message: str
    had_begun: bool = True
    """Whether it may have begun with the first of its tasks; False only if it is known to have been gone before."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something about no worker in particular does not work, and is not needed for a run to go on."""

    message: str


WorkerEvent = Ready | NotStarted | Finished | Draining | Lost | Trouble


class AbstractWorkers(ABC):
    """Processes on some machines, and the time they live in. A context manager: leaving ends all of them."""

    @abstractmethod
    def __enter__(self) -> "AbstractWorkers":
        """Get ready to start workers."""

    @abstractmethod
    def __exit__(self, *exception: object) -> None:
        """End everything that was started."""

    @abstractmethod
    def now(self) -> float:
        """Return the time in seconds, from any beginning; it never goes back."""

    @abstractmethod
    def start(self, pool: PoolConfig) -> int:
        """Begin to start a worker; returns its number, which is never used again. It may take until there is room for it."""

    @abstractmethod
    def send(self, worker: int, task: Task, halvings: int) -> None:
        """Give a task to a worker that is ready; it comes after those that the worker has."""

    @abstractmethod
    def end(self, worker: int) -> None:
        """End a worker at once, whatever it is doing; nothing more is heard of it."""

    @abstractmethod
    def listen(self, timeout_seconds: float) -> list[WorkerEvent]:
        """Return what has happened, at least one event unless the time is up; those of a worker in their order.

        That a worker is lost is heard whether it has a task or not.
        """
