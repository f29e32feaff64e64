"""What of a stage is still to be handed out."""

from collections import deque
from collections.abc import Iterator
from typing import final

from ntkpipe.workers.tasks import Task


@final
class TaskQueue:
    """Tasks, enumerated as they are needed; those that are to be tried again come first."""

    def __init__(self, todo: Iterator[Task]) -> None:
        self._todo = todo
        self._next: deque[Task] = deque()

    def __bool__(self) -> bool:
        if not self._next:
            self._next.extend(task for task in [next(self._todo, None)] if task is not None)
        return bool(self._next)

    def pop(self) -> Task:
        """Take the next one; there must be one."""
        return self._next.popleft()

    def push(self, task: Task) -> None:
        """Put one back that is to be tried again."""
        self._next.append(task)

    def clear(self) -> None:
        """Hand out nothing more."""
        self._todo = iter(())
        self._next.clear()
