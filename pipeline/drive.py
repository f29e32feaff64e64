"""The driver's loop: hands out what is not committed, commits what comes back, tries again what failed."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import final

from ntkpipe.configs.errors import RunStoppedError, StorageError, error_of_kind
from ntkpipe.pipeline.books import Commits, Log, Tenure
from ntkpipe.pipeline.events import Progress
from ntkpipe.pipeline.executors.base import NOT_STARTED, AbstractExecutor, Outcome, TaskError
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.quarantine import Quarantine, describe
from ntkpipe.pipeline.scheduling.blocks import strip_height
from ntkpipe.pipeline.scheduling.queue import AbstractQueue, TaskQueue
from ntkpipe.pipeline.scheduling.waves import queue_of
from ntkpipe.pipeline.stopping import STOPPED, StopRequest
from ntkpipe.storage.records import Failure, Receipt, Verdict
from ntkpipe.workers.tasks import MEMORY_KIND, SharedSolveTask, SolveTask, Task, TaskResult

POLL_SECONDS = 1.0
LOCK_CHECK_SECONDS = 5.0

WORKERS_SECONDS = 5.0
"""After which it is told again how many workers there are: what is told of metrics is forgotten."""

IDLE_SECONDS = 30.0
"""Without a single worker, before it is said."""


@final
class Driver:
    """Takes a run from what is committed to everything committed, stage by stage.

    At-least-once execution with create-only receipts gives each task exactly one effect: a task that was computed but
    not committed when the driver died is computed again and writes the same bytes to the same chunks. Before anything is
    written the driver looks for a successor, and ends without writing if there is one.
    """

    def __init__(
        self,
        plan: Plan,
        executor: AbstractExecutor,
        ledger: Commits,
        lock: Tenure,
        log: Log,
        progress: Progress,
        stop: StopRequest,
        *,
        last_state: Callable[[str], str],
        kept_sides: int = 0,
        made_from: Callable[[Task], dict[str, str]] | None = None,
    ) -> None:
        """Take what a run consists of.

        Args:
            plan: Its stages and tasks.
            executor: Entered.
            ledger: Its receipts.
            lock: Held.
            log: Of this tenure.
            progress: Is told what happens.
            stop: Asks the driver to stop.
            last_state: Names the last state that the solver of a solution has stored.
            kept_sides: Rows or columns of kernel blocks whose features fit in a worker's memory.
            made_from: Gives the digests of all that determines what a task writes, for its receipt.
        """
        self._plan = plan
        self._executor = executor
        self._ledger = ledger
        self._lock = lock
        self._log = log
        self._progress = progress
        self._stop = stop
        self._last_state = last_state
        self._kept_sides = kept_sides
        self._made_from = made_from
        self._states: dict[str, str] = {}
        self._quarantine = Quarantine(plan.config.resources)
        self._open: dict[str, int] = {}
        self._begun: set[str] = set()
        self._num_workers = 0
        self._lock_checked_at = self._ready_at = self._told_at = executor.now()

    def run_stages(self, *stages: str, committed: Callable[[str], None] | None = None) -> None:
        """Finish stages, except for tasks that fail for good: they are set aside, and what needs them is left out.

        Args:
            stages: Of the plan; one, or two of which the tasks of the second start as soon as what they need is there.
            committed: Is told every task that has been committed by now, those of earlier drivers included.

        Raises:
            TaskFailedError: More tasks failed on every attempt they were allowed than may be set aside.
            NtkPipeError: Something failed that does not concern one task only; what was committed stays.
            RunStoppedError: The driver was asked to stop.
            RunLockedError: Another driver has taken over.
        """
        done = {stage: self._finished(stage) for stage in stages}
        self._open = {stage: self._plan.num_tasks(stage) - len(done[stage]) for stage in stages}
        self._begun = set()

        def finish(outcomes: list[Outcome]) -> None:
            self._commit(outcomes)
            for outcome in outcomes:
                if committed is not None:
                    committed(outcome.task.id)
                self._count_down(outcome.task)

        def give_up(task: Task, _: AbstractQueue) -> None:
            self._quarantine.check_early(task.stage, self._plan.num_tasks(task.stage))
            self._count_down(task)

        if committed is not None:
            for name in sorted(name for names in done.values() for name in names):
                committed(name)
        for stage in stages:
            if not self._open[stage] and done[stage]:
                self._begin(stage)
                self._end(stage)
        height = strip_height(self._plan.geometry, self._kept_sides, max(1, self._executor.num_wanted))
        queue = queue_of(self._plan, stages, done, height, self._may_go_on)
        self._carry_out(queue, finish, give_up)
        self._ledger.compact(self._lock.epoch, self._lock.check)

    def _finished(self, stage: str) -> frozenset[str]:
        """Return the ids of a stage's finished tasks; a receipt that belongs to none does not make up for one."""
        found = self._ledger.committed(stage)
        return found and frozenset(task.id for task in self._plan.tasks(stage) if task.id in found)

    def _may_go_on(self, stage: str) -> bool:
        return self._quarantine.may_go_on(stage, self._plan.num_tasks(stage))

    def _begin(self, stage: str) -> None:
        """Say, once, that tasks of a stage are handed out from now on, and how many there are."""
        if stage not in self._begun and stage in self._open:
            self._begun.add(stage)
            total = self._plan.num_tasks(stage)
            self._progress.stage(stage, total - self._open[stage], total)
            self._log.add("stage", stage=stage, done=total - self._open[stage], total=total)

    def _count_down(self, task: Task) -> None:
        """Take a task off what is open of its stage, and end the stage with the last one."""
        self._open[task.stage] -= 1
        if not self._open[task.stage]:
            self._end(task.stage)

    def _end(self, stage: str) -> None:
        """Say what a stage has ended without.

        Raises:
            TaskFailedError: It is more than may be missing.
        """
        total = self._plan.num_tasks(stage)
        self._quarantine.check_end(stage, total)
        aside, left_out = self._quarantine.missing(stage)
        if aside or left_out:
            self._log.add("holes", stage=stage, set_aside=aside, left_out=left_out)
            self.note(
                f"the run goes on without {aside + left_out} of {total} {stage} tasks: {aside} set aside, {left_out} left out."
            )

    def run_shared(self, name: str, tasks: Iterable[SharedSolveTask]) -> bool:
        """Carry out tasks of one solution that leave no receipt.

        Returns:
            Whether the solution can still be found: False once it was set aside or left out.

        Raises:
            NtkPipeError: As for a stage.
        """

        def finish(outcomes: list[Outcome]) -> None:
            # All steps of a solve have one name, and a failure of one is not held against another.
            for outcome in outcomes:
                self._quarantine.forgive(outcome.task)

        def give_up(_: Task, queue: AbstractQueue) -> None:
            queue.clear()

        todo = list(tasks)
        self._carry_out(TaskQueue(todo, len(todo)), finish, give_up)
        return not self._quarantine.is_out(SolveTask(name))

    def conclude(self) -> None:
        """Say what the run has ended without, if anything."""
        missing = {stage: self._quarantine.missing(stage) for stage in self._plan.stages}
        self._log.add(
            "finish", set_aside=sum(a for a, _ in missing.values()), left_out=sum(b for _, b in missing.values())
        )
        parts = [f"{stage} {aside + left_out}" for stage, (aside, left_out) in missing.items() if aside + left_out]
        if parts:
            self.note(
                f"The run has ended with holes; missing tasks: {', '.join(parts)}. `ntkpipe status` names them, "
                "`ntkpipe resume` tries them again."
            )

    def note(self, text: str) -> None:
        """Tell whoever watches."""
        self._progress.note(text)

    def _is_in(self, task: Task) -> bool:
        """Return whether a task is worth a try; one that needs something that is missing is left out right away."""
        if not self._quarantine.is_out(task):
            return True
        if not self._quarantine.is_named(task):
            self._quarantine.leave_out(task)
            self._lock.check()
            self._record(task, TaskError("left-out", "a task was set aside that it needs."), "left-out")
        return False

    def _carry_out(
        self,
        queue: AbstractQueue,
        finish: Callable[[list[Outcome]], None],
        give_up: Callable[[Task, AbstractQueue], None],
    ) -> None:
        """Keep the workers busy until all tasks are finished, set aside or left out.

        Args:
            queue: The tasks.
            finish: Is given what has succeeded since it was given something.
            give_up: Is called when a task was set aside or left out.
        """
        in_flight = 0
        while True:
            if not self._stop.requested:
                in_flight += self._hand_out(queue, give_up)
            if not in_flight and not queue.num_left:
                return
            if self._stop.is_over or (self._stop.requested and not in_flight):
                raise RunStoppedError(STOPPED)
            outcomes = self._executor.wait(POLL_SECONDS)
            self._look(fresh=bool(outcomes))
            in_flight -= len(outcomes)
            succeeded = [outcome for outcome in outcomes if outcome.error is None]
            # What has succeeded is committed before a failure may end the run.
            if succeeded:
                finish(succeeded)
            for outcome in outcomes:
                if outcome.error is None:
                    queue.finished(outcome.task)
                elif self._judge(outcome.task, outcome.error, outcome.worker) == "again":
                    queue.push(outcome.task)
                else:
                    queue.finished(outcome.task)
                    give_up(outcome.task, queue)

    def _hand_out(self, queue: AbstractQueue, give_up: Callable[[Task, AbstractQueue], None]) -> int:
        """Give workers what they have room for; return how many tasks that were."""
        num = 0
        while (worker := self._executor.next_worker(queue.num_left)) is not None:
            task = queue.pop(worker)
            if task is None:
                break
            self._begin(task.stage)
            if self._is_in(task):
                self._executor.submit(worker, task, self._quarantine.halvings(task))
                num += 1
            else:
                queue.finished(task)
                give_up(task, queue)
        return num

    def _commit(self, outcomes: list[Outcome]) -> None:
        done = [(self._receipt(outcome.task, outcome.result), outcome.result) for outcome in outcomes if outcome.result]
        self._ledger.commit_at_once([receipt for receipt, _ in done])
        for receipt, result in done:
            self._progress.task(receipt.stage, receipt.num_bytes)
            self._log.add(
                "commit",
                stage=receipt.stage,
                task=receipt.task,
                seconds=round(result.seconds, 4),
                bytes=receipt.num_bytes,
                bytes_read=result.bytes_read,
                chunks_read=result.chunks_read,
                peak_bytes=result.peak_bytes,
                worker=result.worker,
                attempt=receipt.attempt,
            )

    def _receipt(self, task: Task, result: TaskResult) -> Receipt:
        return Receipt(
            stage=task.stage,
            task=task.id,
            chunks=result.chunks,
            objects=result.objects,
            seconds=result.seconds,
            worker=result.worker,
            epoch=self._lock.epoch,
            attempt=self._quarantine.attempt(task),
            versions=result.versions,
            made_from=self._made_from(task) if self._made_from is not None else {},
        )

    def _judge(self, task: Task, error: TaskError, worker: str) -> Verdict:
        """Decide on a failed attempt, and say so.

        Raises:
            NtkPipeError: It ends the run.
        """
        if error.kind == NOT_STARTED or self._got_on(task, error):
            return "again"
        fields = {"stage": task.stage, "task": task.id, "kind": error.kind, "message": error.message, "worker": worker}
        if self._stop.requested:
            self._log.add("failure", **fields)
            return "again"  # which nobody is going to hand out any more
        attempt, verdict = self._quarantine.attempt(task), self._quarantine.judge(task, error)
        self._log.add("failure", **fields, verdict=verdict)
        self._progress.attempt_failed(task.stage)
        self._tell(task, error, verdict, attempt)
        self._record(task, error, verdict, attempt)
        if verdict != "end":
            return verdict
        raise error_of_kind(error.kind, error.message)

    def _tell(self, task: Task, error: TaskError, verdict: Verdict, attempt: int) -> None:
        allowed = self._plan.config.resources.max_attempts
        text = f"{task.stage} task {task.id}, attempt {attempt} of {allowed}: {error.message}"
        if verdict == "again" and error.kind == MEMORY_KIND and not error.counts:
            text = f"{task.stage} task {task.id} is tried again with half the batch: {error.message}"
        elif verdict == "aside":
            text = f"{describe(task)} is set aside: {error.message}"
        elif verdict == "left-out":
            text = f"{describe(task)} is left out: {error.message}"
        self.note(text)

    def _got_on(self, task: Task, error: TaskError) -> bool:
        """Return whether a solve that was cut short has stored a later state than at its last end: it needs more time."""
        if not isinstance(task, SolveTask) or error.kind not in ("deadline", "worker-lost"):
            return False
        before, self._states[task.name] = self._states.get(task.name, ""), self._last_state(task.name)
        if self._states[task.name] <= before:
            return False
        self.note(f"{task.stage} task {task.id} goes on from the state that it has stored: {error.message}")
        return True

    def _record(self, task: Task, error: TaskError, verdict: Verdict, attempt: int = 1) -> None:
        failure = Failure(
            stage=task.stage,
            task=task.id,
            epoch=self._lock.epoch,
            attempt=attempt,
            kind=error.kind,
            message=error.message,
            verdict=verdict,
        )
        # A store that is full or gone must not hide the error that is about to be raised.
        with suppress(StorageError):
            self._ledger.record_failure(failure)

    def _look(self, *, fresh: bool) -> None:
        """Look for a successor: always before something is written, now and then otherwise. Say that nobody works."""
        now, num_ready = self._executor.now(), self._executor.num_ready
        if num_ready != self._num_workers or now - self._told_at > WORKERS_SECONDS:
            self._num_workers, self._told_at = num_ready, now
            self._progress.workers(num_ready, self._executor.num_wanted)
        if fresh:
            self._lock.check()
        elif now - self._lock_checked_at > LOCK_CHECK_SECONDS:
            self._lock.look()
        else:
            return
        self._lock_checked_at = now
        if num_ready:
            self._ready_at = now
        elif now - self._ready_at > IDLE_SECONDS:
            self._ready_at = now
            self.note(
                f"no worker has been ready for {IDLE_SECONDS:g} s; waiting for one. Wanted are "
                f"{self._plan.config.resources.wanted}; `ray status` shows what the cluster has."
            )
