"""What of some stages is still to be handed out, and to whom it is best handed."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from typing import final

from ntkpipe.workers.tasks import Task


class AbstractQueue(ABC):
    """Tasks that have not been handed out, or are to be tried again."""

    @property
    @abstractmethod
    def num_left(self) -> int:
        """How many tasks there are."""

    @abstractmethod
    def pop(self, worker: int) -> Task | None:
        """Take the task that is best given to a worker; None if there is none that can be started now."""

    @abstractmethod
    def push(self, task: Task) -> None:
        """Put one back that is to be tried again; it comes first."""

    @abstractmethod
    def clear(self) -> None:
        """Hand out nothing more."""

    def finished(self, task: Task) -> None:  # noqa: B027 - most queues hold nothing that waits for others
        """A task is committed or given up; what waits for it can be started."""


@final
class TaskQueue(AbstractQueue):
    """Tasks in their order, enumerated as they are needed.

    Args:
        todo: The tasks.
        num_left: How many they are.
    """

    def __init__(self, todo: Iterable[Task], num_left: int) -> None:
        self._todo = iter(todo)
        self._again: deque[Task] = deque()
        self._num_left = num_left

    @property
    def num_left(self) -> int:
        """How many tasks there are."""
        return self._num_left

    def pop(self, worker: int) -> Task | None:
        """Take the next task, whoever asks."""
        task = self._again.popleft() if self._again else next(self._todo, None)
        self._num_left = 0 if task is None else self._num_left - 1
        return task

    def push(self, task: Task) -> None:
        """Put one back."""
        self._again.append(task)
        self._num_left += 1

    def clear(self) -> None:
        """Forget all of them."""
        self._todo, self._num_left = iter(()), 0
        self._again.clear()


@final
class ChainedQueue(AbstractQueue):
    """Tasks of one stage, and behind them those of the next, each of which waits for some of the first.

    Args:
        first: Of the one stage.
        then: Of the next, which is told what is finished of the first.
        may_go_on: Whether the next stage may be begun; asked for each of its tasks.
    """

    def __init__(self, first: AbstractQueue, then: AbstractQueue, may_go_on: Callable[[], bool]) -> None:
        self._first = first
        self._then = then
        self._may_go_on = may_go_on
        self._stage = ""

    @property
    def num_left(self) -> int:
        """How many tasks there are in both stages."""
        return self._first.num_left + self._then.num_left

    def pop(self, worker: int) -> Task | None:
        """Take from the first stage as long as there is something."""
        task = self._first.pop(worker)
        if task is None:
            return self._then.pop(worker) if self._may_go_on() else None
        self._stage = task.stage
        return task

    def push(self, task: Task) -> None:
        """Put one back."""
        (self._first if task.stage == self._stage else self._then).push(task)

    def clear(self) -> None:
        """Forget all of them."""
        self._first.clear()
        self._then.clear()

    def finished(self, task: Task) -> None:
        """Tell both."""
        self._first.finished(task)
        self._then.finished(task)
