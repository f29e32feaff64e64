"""The policy of a run on many workers: which one is given the next task, when one is late, lost or about to leave.

A worker has two tasks at a time: one computes, one waits, which hides the round trip. A task goes to the worker that
will be done with it first; near the end of a stage it waits for a worker that is busy, if the others would be done with
all that is left before a slow one had finished it. What a worker that is lost had is reported as failed, and another one
is started in its place; where there is no room for it yet, it waits for a machine to join. One that does not start is tried
again after longer and longer pauses, as long as there are others.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, final

from ntkpipe.configs.errors import PlanError, RunLockedError, error_of_kind
from ntkpipe.configs.resources import PoolConfig
from ntkpipe.configs.secrets import redacted
from ntkpipe.pipeline.executors.base import NOT_STARTED, AbstractExecutor, Outcome, TaskError, attempt_error
from ntkpipe.pipeline.scheduling.roster import Call, Member, Roster
from ntkpipe.pipeline.scheduling.speeds import MIN_DEADLINE_SECONDS, Speeds
from ntkpipe.pipeline.scheduling.workers import (
    AbstractWorkers,
    Draining,
    Finished,
    Lost,
    NotStarted,
    Ready,
    Trouble,
)
from ntkpipe.workers.tasks import MEMORY_KIND, Task, TaskResult, WorkerSpec

MAX_STARTS: Final = 3
"""In a row that fail, before the next one is put off."""

PAUSE_SECONDS: Final = 10.0
"""Before the start that is put off first; each one that fails after it doubles the pause."""

MAX_PAUSE_SECONDS: Final = 300.0
"""A storage or a machine may be away for minutes; looking for it costs seconds of a process that starts in vain."""

LOOK_SECONDS: Final = 1.0
"""Between two looks for workers that are late."""


@dataclass(frozen=True, slots=True)
class _Vacancy:
    """The place of a worker that has not started, to be tried again."""

    pool: int
    failed_starts: int
    until: float
    """When it is tried again, or as soon as there are others."""


@final
class Fleet(AbstractExecutor):
    """Workers of one or more pools.

    Args:
        workers: Starts, feeds, hears and ends them.
        spec: Of the run.
        pools: How many workers of which kind are wanted.
        task_seconds: The longest that a task may take.
        start_seconds: The longest that a worker may take to start.
        slow_factor: How many times longer than expected a task may take.
        tell: Is told what becomes of workers, as fields of an event.
        note: Is told, once, what a person should know of workers that do not start.
    """

    def __init__(
        self,
        workers: AbstractWorkers,
        spec: WorkerSpec,
        pools: Sequence[PoolConfig],
        *,
        task_seconds: float,
        start_seconds: float,
        slow_factor: float,
        tell: Callable[..., None] | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self._workers = workers
        self._spec = spec
        self._pools = tuple(pools)
        self._task_seconds = task_seconds
        self._start_seconds = start_seconds
        self._speeds = Speeds(task_seconds, slow_factor)
        self._roster = Roster(self._speeds)
        self._tell = tell
        self._note = note
        self._vacancies: list[_Vacancy] = []
        self._has_waited = False
        self._late: Counter[tuple[str, str]] = Counter()
        self._looked_at = -math.inf

    def __enter__(self) -> "Fleet":
        """Begin to start the workers.

        Raises:
            PlanError: They cannot be reached.
        """
        self._workers.__enter__()
        try:
            for pool, section in enumerate(self._pools):
                for _ in range(section.workers):
                    self._start(pool)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End the workers."""
        try:
            # A driver that was replaced tells nobody anything.
            with suppress(RunLockedError):
                for member in self._roster:
                    if member.is_ready:
                        self._say(member, "ended")
        finally:
            self._roster.clear()
            self._workers.__exit__(*exception)

    def now(self) -> float:
        """Return the time that the workers live in."""
        return self._workers.now()

    @property
    def num_ready(self) -> int:
        """How many workers take tasks."""
        return self._roster.num_taking

    @property
    def num_wanted(self) -> int:
        """How many workers were asked for."""
        return sum(pool.workers for pool in self._pools)

    def next_worker(self, num_left: int) -> int | None:
        """Return the worker that will be done first with a task that it is given now, if it is worth giving it one."""
        return self._roster.next_worker(num_left, self.now())

    def submit(self, worker: int, task: Task, halvings: int = 0) -> None:
        """Give a task to a worker that :meth:`next_worker` has named."""
        member = self._roster[worker]
        if not member.calls:
            member.since = self.now()
        self._roster.give(member, Call(task, halvings))
        self._workers.send(worker, task, halvings)

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Collect what is ready, and replace workers that died, leave or took too long.

        Raises:
            PlanError: No worker can be started.
            NtkPipeError: What kept a worker from starting.
        """
        outcomes: list[Outcome] = []
        for event in self._workers.listen(timeout_seconds):
            if isinstance(event, Trouble):
                self._say(None, "unknown", event.message)
            elif (member := self._roster.get(event.worker)) is not None:
                outcomes += self._hear(member, event)
        now = self.now()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            least = min(self._task_seconds, self._start_seconds, MIN_DEADLINE_SECONDS)
            for late in [member for member in self._roster if now - member.since > least]:
                outcomes += self._check(late)
            self._fill_vacancies()
        return outcomes

    def _hear(self, member: Member, event: Ready | NotStarted | Finished | Draining | Lost) -> list[Outcome]:
        match event:
            case Ready():
                member.label, member.device = event.label, event.device
                member.failed_starts, member.since = 0, self.now()
                self._roster.welcome(member)
                self._say(member, "ready")
                return []
            case NotStarted():
                # What one machine lacks is no reason to end a run that others carry, or may carry.
                if event.kind not in ("exception", MEMORY_KIND, "worker-lost") and not self._has_hope(member):
                    raise error_of_kind(event.kind, event.message)
                self._start_again(member, event.message)
                return []
            case Finished():
                return [self._finish(member, event)]
            case Draining():
                return self._drain(member)
            case Lost():
                return self._replace(member, event.kind, event.message, had_begun=event.had_begun)

    def _has_hope(self, without: Member) -> bool:
        """Return whether another worker is ready, or is starting and has not failed to before."""
        others = (other for other in self._roster if other is not without)
        return bool(self.num_ready) or any(not other.failed_starts for other in others)

    def _finish(self, member: Member, event: Finished) -> Outcome:
        """Return how the first task of a worker ended."""
        call = self._roster.take(member)
        member.since = self.now()
        if isinstance(event.answer, TaskResult):
            self._speeds.learn(member.worker, call.task.stage, event.answer.seconds)
            self._late.pop((call.task.stage, call.task.id), None)
        if member.is_draining and not member.calls:
            self._end(member, "ended")
            self._start(member.pool)
        if isinstance(event.answer, TaskResult):
            return Outcome(call.task, result=event.answer, worker=member.label)
        kind, message = event.answer
        if kind == NOT_STARTED:
            error = TaskError(kind, message, counts=False)
        else:
            error = attempt_error(self._spec, call.task, call.halvings, kind, message)
        return Outcome(call.task, error=error, worker=member.label)

    def _drain(self, member: Member) -> list[Outcome]:
        """Give a worker nothing more; when it is done with what it has, another one takes its place elsewhere."""
        if member.is_draining:
            return []
        self._roster.drain(member)
        self._say(member, "draining")
        if not member.calls:
            self._end(member, "ended")
            self._start(member.pool)
        return []

    def _check(self, member: Member) -> list[Outcome]:
        """Take its tasks from a worker that is late, or start one again that does not come up."""
        passed = self.now() - member.since
        if not member.is_ready:
            if passed > self._start_seconds:
                setting = f"resources.start_seconds = {self._start_seconds:g}"
                late = f"its process took longer than {setting} to start; is there room for it?"
                self._start_again(member, late, counts=not self.num_ready)
            return []
        if not member.calls:
            return []
        task = member.calls[0].task
        allowed = self._speeds.deadline(member.worker, task.stage, self._late[task.stage, task.id])
        if passed <= allowed:
            return []
        self._late[task.stage, task.id] += 1
        reason = f"resources.task_seconds = {allowed:g}"
        if allowed < self._task_seconds:
            reason = f"{allowed:.0f} s, which is resources.slow_factor times what such tasks take"
        return self._replace(member, "deadline", f"took longer than {reason}")

    def _start_again(self, member: Member, reason: str, *, counts: bool = True) -> None:
        """Start a worker afresh that has not started: at once a few times, then after a pause.

        Raises:
            PlanError: There is no other one, ready or starting.
        """
        failed, why = member.failed_starts + counts, reason.rstrip(".?")
        if failed < MAX_STARTS:
            # That there is no room for some of many is told once, not every few minutes of each of them.
            is_news = counts or not self._has_waited
            self._has_waited |= not counts
            self._end(member, "lost", reason if is_news else "")
            self._start(member.pool, failed)
            return
        self._end(member, "lost", f"{why}; {failed} starts in a row have failed")
        if not len(self._roster):
            raise PlanError(
                f"no worker could be started in {MAX_STARTS} tries, the last one because {why}. Check "
                "resources.workers, the free CPUs and GPUs of the cluster, and that its nodes can import ntkpipe."
            )
        # No more than ten doublings, so that it stays a number.
        pause = min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2.0 ** min(10, failed - MAX_STARTS))
        self._vacancies.append(_Vacancy(member.pool, failed, self.now() + pause))
        if self._note is not None:
            self._note(
                f"a worker does not start, at least {MAX_STARTS} times in a row, the last one because {redacted(why)}. The run "
                f"goes on with the others ({self.num_ready} of {self.num_wanted} are ready now); those that fail are started "
                f"again after pauses of up to {MAX_PAUSE_SECONDS:g} s."
            )
            self._note = None

    def _fill_vacancies(self) -> None:
        """Start again what was put off and is due; while nobody is ready, whoever is starting decides whether anybody can."""
        if self._vacancies and self.num_ready:
            now = self.now()
            due = [vacancy for vacancy in self._vacancies if vacancy.until <= now]
            self._vacancies = [vacancy for vacancy in self._vacancies if vacancy.until > now]
            for vacancy in due:
                self._start(vacancy.pool, vacancy.failed_starts)

    def _replace(self, member: Member, kind: str, message: str, *, had_begun: bool = True) -> list[Outcome]:
        """Start a new worker in place of one that is lost, and report its tasks; only the first may have been started."""
        outcomes = []
        for place, call in enumerate(member.calls):
            if place or not had_begun:
                error = TaskError(NOT_STARTED, message, counts=False)
            elif member.is_draining and kind == "worker-lost":
                error = TaskError(kind, f"{message}; it had been told to end", counts=False)
            else:
                error = attempt_error(self._spec, call.task, call.halvings, kind, message)
            outcomes.append(Outcome(call.task, error=error, worker=member.label))
        self._end(member, "lost", message)
        self._start(member.pool)
        return outcomes

    def _start(self, pool: int, failed_starts: int = 0) -> None:
        worker = self._workers.start(self._pools[pool])
        self._roster.add(Member(worker, pool, self.now(), failed_starts=failed_starts))

    def _end(self, member: Member, state: str, message: str = "") -> None:
        self._roster.remove(member)
        self._workers.end(member.worker)
        self._say(member, state, message)

    def _say(self, member: Member | None, state: str, message: str = "") -> None:
        """Tell what becomes of a worker; one that has not started has no name yet, and nothing is told of its end but why."""
        if self._tell is None or (member is not None and not member.label and not message):
            return
        fields: dict[str, Any] = {"worker": "", "state": state, "host": "", "device": ""}
        if member is not None:
            host = member.label.rpartition(":")[0]
            fields |= {"worker": member.label, "host": host, "device": member.device, "pool": member.pool}
        self._tell(**fields, **({"message": redacted(message)} if message else {}))
