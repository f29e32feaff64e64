"""What becomes of tasks that fail: they are tried again, set aside or left out, or they end the run."""

from collections import Counter
from dataclasses import dataclass
from typing import final

from ntkpipe.configs.errors import (
    ChunkNotReadyError,
    CorruptChunkError,
    NtkPipeError,
    NumericalError,
    StorageError,
    TaskFailedError,
)
from ntkpipe.configs.resources import ResourcesConfig
from ntkpipe.pipeline.executors.base import TaskError
from ntkpipe.storage.grid import Shard
from ntkpipe.storage.records import Verdict
from ntkpipe.storage.solutions import committed_as
from ntkpipe.workers.tasks import FeaturesTask, KernelTask, Task, covered

RETRIED_KINDS = frozenset({"exception", "worker-lost", "deadline", "memory", StorageError.kind, CorruptChunkError.kind})
"""Trying again may help. Errors of storage end the run when it does not: they do not concern one task only."""

RUN_KINDS = frozenset({StorageError.kind, CorruptChunkError.kind})

NUM_NAMED = 10
"""Tasks that an error names; the others are counted."""

MIN_ASIDE = 10
"""So many tasks of a stage may be set aside before it is given up early, however few are allowed at its end."""

SAFE = "Everything that was committed is safe; `ntkpipe resume` goes on from there."


def name_of(task: Task) -> tuple[str, str]:
    """Return stage and id of what a task belongs to: the parts and steps of a shared solve belong to the solution."""
    return committed_as(task.stage, task.id)


def describe(task: Task) -> str:
    """Return a task in words, with the samples it is about where they are few enough to be worth a look."""
    sides = [f"{side.split} {side.start}" + (f" to {side.stop - 1}" if len(side) > 1 else "") for side in covered(task)]
    return f"{task.stage} task {task.id}" + (f" (samples: {', '.join(dict.fromkeys(sides))})" if sides else "")


@dataclass(frozen=True, slots=True)
class SetAside:
    """A task that has failed for good in this tenure."""

    task: Task
    error: TaskError
    attempts: int

    def __str__(self) -> str:
        times = "" if self.attempts == 1 else f", {self.attempts} attempts, last with"
        return f"{describe(self.task)}{times}: {self.error.message}"


@final
class Quarantine:
    """Counts the attempts of one driver, and knows what is missing because of those that failed.

    Args:
        resources: How many attempts a task has, and what share of a stage's tasks may be set aside.
    """

    def __init__(self, resources: ResourcesConfig) -> None:
        self._max_attempts = resources.max_attempts
        self._max_share = resources.max_bad_share
        self._counted: Counter[tuple[str, str]] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._halvings: Counter[tuple[str, str]] = Counter()
        self._aside: dict[tuple[str, str], SetAside] = {}
        self._left_out: set[tuple[str, str]] = set()
        self._missing_shards: set[Shard] = set()

    def attempt(self, task: Task) -> int:
        """Return the number of the attempt at a task that is under way, or has just failed; 1 for the first."""
        return self._failed[task.stage, task.id] + 1

    def halvings(self, task: Task) -> int:
        """Return how many attempts at a task have run out of memory."""
        return self._halvings[task.stage, task.id]

    def forgive(self, task: Task) -> None:
        """Forget the failures of a task that is finished: all steps of a shared solve have one name."""
        for counter in (self._counted, self._failed, self._halvings):
            counter.pop((task.stage, task.id), None)

    def is_out(self, task: Task) -> bool:
        """Return whether a task was set aside or left out, or a block of a kernel lacks its samples.

        A sample that ends the process of its worker would end another one for each of its blocks.
        """
        if self.is_named(task):
            return True
        if not isinstance(task, KernelTask):
            return False
        return any(
            shard.split == side.split and shard.start < side.stop and side.start < shard.stop
            for shard in self._missing_shards
            for side in (task.block.rows, task.block.columns)
        )

    def is_named(self, task: Task) -> bool:
        """Return whether a task itself was set aside or left out."""
        name = name_of(task)
        return name in self._aside or name in self._left_out

    def judge(self, task: Task, error: TaskError) -> Verdict:
        """Count a failed attempt and decide what becomes of its task."""
        key = (task.stage, task.id)
        if error.kind == "memory":
            self._halvings[key] += 1
        self._counted[key] += error.counts
        if error.kind in RETRIED_KINDS and self._counted[key] < self._max_attempts:
            self._failed[key] += 1
            return "again"
        if error.kind == ChunkNotReadyError.kind and self.has_holes:
            self.leave_out(task)
            return "left-out"
        if error.kind == NumericalError.kind or error.kind in RETRIED_KINDS - RUN_KINDS:
            self._aside[name_of(task)] = SetAside(task, error, self._failed[key] + 1)
            self._note_missing(task)
            return "aside"
        return "end"

    def leave_out(self, task: Task) -> None:
        """Give up a task because something that it needs is missing."""
        self._left_out.add(name_of(task))
        self._note_missing(task)

    @property
    def has_holes(self) -> bool:
        """Whether anything was set aside or left out."""
        return bool(self._aside or self._left_out)

    def missing(self, stage: str) -> tuple[int, int]:
        """Return how many tasks of a stage were set aside, and how many left out."""
        return sum(one == stage for one, _ in self._aside), sum(one == stage for one, _ in self._left_out)

    def check_early(self, stage: str, total: int) -> None:
        """Give a stage up when so much of it fails that the rest will, too.

        Raises:
            NumericalError: As at the end of the stage.
            TaskFailedError: Likewise.
        """
        if self.missing(stage)[0] > max(MIN_ASIDE, self._max_share * total):
            raise self._error(stage, total)

    def may_go_on(self, stage: str, total: int) -> bool:
        """Return whether no more of a stage is missing than may be."""
        return self.missing(stage)[0] <= self._max_share * total

    def check_end(self, stage: str, total: int) -> None:
        """Refuse to go on to the next stage when more is missing than may be.

        Raises:
            NumericalError: All that failed have no numbers.
            TaskFailedError: Of tasks that failed; ten of them are named.
        """
        if not self.may_go_on(stage, total):
            raise self._error(stage, total)

    def _error(self, stage: str, total: int) -> NtkPipeError:
        found = [one for (of, _), one in self._aside.items() if of == stage]
        numerical = all(one.error.kind == NumericalError.kind for one in found)
        if len(found) == 1 and numerical:
            return NumericalError(found[0].error.message)
        if len(found) == 1:
            task, error, attempts = found[0].task, found[0].error, found[0].attempts
            times = "once" if attempts == 1 else f"{attempts} times"
            return TaskFailedError(f"{describe(task)} failed {times}, last with: {error.message.rstrip('.')}. {SAFE}")
        lines = "".join(f"\n  {one}" for one in found[:NUM_NAMED])
        if len(found) > NUM_NAMED:
            lines += f"\n  and {len(found) - NUM_NAMED} more, see `ntkpipe status`"
        text = (
            f"{len(found)} of {total} {stage} tasks were set aside, which is more than resources.max_bad_share = "
            f"{self._max_share:g} allows:{lines}\n{SAFE} It tries these tasks again: mend what is named first, or go on "
            "without them with a larger resources.max_bad_share."
        )
        return NumericalError(text) if numerical else TaskFailedError(text)

    def _note_missing(self, task: Task) -> None:
        if isinstance(task, FeaturesTask):
            self._missing_shards.add(task.shard)
