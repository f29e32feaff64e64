"""The driver's loop: hands out what is not committed, commits what comes back, tries again what failed."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import final

from ntkpipe.configs.errors import NtkPipeError, StorageError, TaskFailedError, error_of_kind
from ntkpipe.pipeline.events import EventLog, Progress
from ntkpipe.pipeline.executors.base import AbstractExecutor, Outcome, TaskError
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import Failure, Receipt
from ntkpipe.workers.tasks import SharedSolveTask, SolveTask, Task

POLL_SECONDS = 1.0
LOCK_CHECK_SECONDS = 5.0


@final
class Driver:
    """Takes a run from what is committed to everything committed, stage by stage.

    At-least-once execution with create-only receipts gives each task exactly one effect: a task that was computed but
    not committed when the driver died is computed again and writes the same bytes to the same chunks.
    """

    def __init__(
        self,
        plan: Plan,
        executor: AbstractExecutor,
        ledger: Ledger,
        lock: EpochLock,
        log: EventLog,
        progress: Progress,
        stop: StopRequest,
        *,
        last_state: Callable[[str], str],
    ) -> None:
        """Take what a run consists of; ``last_state`` names the last state that the solver of a solution has stored."""
        self._plan = plan
        self._executor = executor
        self._ledger = ledger
        self._lock = lock
        self._log = log
        self._progress = progress
        self._stop = stop
        self._last_state = last_state
        self._states: dict[str, str] = {}
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._lock_checked_at = time.monotonic()

    def run_stage(self, stage: str, *, committed: Callable[[str], None] | None = None) -> None:
        """Finish a stage.

        Args:
            stage: Of the plan.
            committed: Is told every task that has been committed by now, those of earlier drivers included.

        Raises:
            TaskFailedError: A task failed on every attempt it was allowed.
            NtkPipeError: A task failed in a way that no further attempt can change; what was committed stays.
            RunLockedError: Another driver has taken over.
        """
        done = self._ledger.committed(stage)
        total = self._plan.num_tasks(stage)
        if not total:
            return
        self._progress.stage(stage, len(done), total)
        self._log.add("stage", stage=stage, done=len(done), total=total)

        def finish(outcome: Outcome) -> None:
            self._commit(outcome)
            if committed is not None:
                committed(outcome.task.id)

        if committed is not None:
            for name in sorted(done):
                committed(name)
        self._carry_out((task for task in self._plan.tasks(stage) if task.id not in done), finish)

    def run_shared(self, tasks: Iterable[SharedSolveTask]) -> None:
        """Carry out tasks that leave no receipt.

        Raises:
            NtkPipeError: As for a stage.
        """

        def finish(outcome: Outcome) -> None:
            # All steps of a solve have one name, and a failure of one is not held against another.
            self._attempts.pop((outcome.task.stage, outcome.task.id), None)

        self._carry_out(iter(tasks), finish)

    def _carry_out(self, todo: Iterator[Task], finish: Callable[[Outcome], None]) -> None:
        """Keep the workers busy until all tasks are finished."""
        again: deque[Task] = deque()
        in_flight = 0
        while True:
            while in_flight < self._executor.capacity:
                task = again.popleft() if again else next(todo, None)
                if task is None:
                    break
                self._executor.submit(task)
                in_flight += 1
            if not in_flight:
                return
            for outcome in self._executor.wait(POLL_SECONDS):
                in_flight -= 1
                if outcome.error is None:
                    finish(outcome)
                else:
                    self._retry_or_raise(outcome.task, outcome.error)
                    again.append(outcome.task)
            self._check_lock()

    def _commit(self, outcome: Outcome) -> None:
        task, result = outcome.task, outcome.result
        assert result is not None
        receipt = Receipt(
            stage=task.stage,
            task=task.id,
            chunks=result.chunks,
            objects=result.objects,
            seconds=result.seconds,
            worker=result.worker,
            epoch=self._lock.epoch,
            attempt=self._attempts[task.stage, task.id] + 1,
            versions=result.versions,
        )
        self._ledger.commit(receipt)
        self._progress.task(task.stage, receipt.num_bytes)
        self._log.add(
            "commit",
            stage=task.stage,
            task=task.id,
            seconds=round(result.seconds, 4),
            bytes=receipt.num_bytes,
            worker=result.worker,
        )

    def _retry_or_raise(self, task: Task, error: TaskError) -> None:
        """Decide on a failed attempt; returns if the task is to be tried again."""
        if not error.counts or self._got_on(task, error):
            return
        self._attempts[task.stage, task.id] += 1
        attempt, allowed = self._attempts[task.stage, task.id], self._plan.config.resources.max_attempts
        self._log.add("failure", stage=task.stage, task=task.id, kind=error.kind, message=error.message)
        self._progress.note(f"{task.stage} task {task.id}, attempt {attempt} of {allowed}: {error.message}")
        final_error = _final_error(error)
        if final_error is not None:
            self._record(task, error, attempt)
            raise final_error
        if attempt >= allowed:
            self._record(task, error, attempt)
            if error.kind == StorageError.kind:
                raise StorageError(error.message)
            raise TaskFailedError(
                f"{task.stage} task {task.id} failed {attempt} times, last with: {error.message} Everything that was "
                "committed is safe; `ntkpipe resume` goes on from there."
            )

    def _got_on(self, task: Task, error: TaskError) -> bool:
        """Return whether a solve that was cut short has stored a later state than at its last end: it needs more time."""
        if not isinstance(task, SolveTask) or error.kind not in ("deadline", "worker-lost"):
            return False
        before, self._states[task.name] = self._states.get(task.name, ""), self._last_state(task.name)
        if self._states[task.name] <= before:
            return False
        self.note(f"{task.stage} task {task.id} goes on from the state that it has stored: {error.message}")
        return True

    def note(self, text: str) -> None:
        """Tell whoever watches."""
        self._progress.note(text)

    def _record(self, task: Task, error: TaskError, attempt: int) -> None:
        failure = Failure(
            stage=task.stage,
            task=task.id,
            epoch=self._lock.epoch,
            attempt=attempt,
            kind=error.kind,
            message=error.message,
        )
        # A store that is full or gone must not hide the error that is about to be raised.
        with suppress(StorageError):
            self._ledger.record_failure(failure)

    def _check_lock(self) -> None:
        if time.monotonic() - self._lock_checked_at > LOCK_CHECK_SECONDS:
            self._lock.check()
            self._lock_checked_at = time.monotonic()


def _final_error(error: TaskError) -> NtkPipeError | None:
    """Return the error of an attempt that no further attempt can change, None if trying again may help."""
    if error.kind in ("exception", "worker-lost", "deadline", StorageError.kind):
        return None
    return error_of_kind(error.kind, error.message)
