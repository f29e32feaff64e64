"""The trivial executor: one worker in this process."""

import time
from collections import deque
from typing import final

from ntkpipe.pipeline.executors.base import AbstractExecutor, Outcome, attempt_error
from ntkpipe.workers.tasks import Task, WorkerSpec
from ntkpipe.workers.worker import Worker, describe_failure


@final
class SerialExecutor(AbstractExecutor):
    """Carries out tasks one after the other; the yardstick for every other executor."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._queue: deque[tuple[Task, int]] = deque()
        self._worker: Worker | None = None

    def __enter__(self) -> "SerialExecutor":
        """Create the worker."""
        self._worker = Worker(self._spec)
        return self

    def __exit__(self, *exception: object) -> None:
        """Drop the worker and what it loaded."""
        self._worker = None

    def now(self) -> float:
        """Return the time of this machine."""
        return time.monotonic()

    @property
    def num_ready(self) -> int:
        """One."""
        return 1

    @property
    def num_wanted(self) -> int:
        """One."""
        return 1

    def next_worker(self, num_left: int) -> int | None:
        """Return the only worker if it has nothing to do: there is nothing to overlap."""
        return 0 if num_left and not self._queue else None

    def submit(self, worker: int, task: Task, halvings: int = 0) -> None:
        """Queue a task."""
        self._queue.append((task, halvings))

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Carry out the next task."""
        assert self._worker is not None, "the executor has not been entered"
        if not self._queue:
            return []
        task, halvings = self._queue.popleft()
        try:
            return [Outcome(task, result=self._worker.run(task, halvings))]
        except Exception as error:  # noqa: BLE001 - whatever ends a task is reported, not raised
            return [Outcome(task, error=attempt_error(self._spec, task, halvings, *describe_failure(error)))]
