"""What tasks take of a worker: they are read, computed and written, some of it from memory, some of it in vain."""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol, final

from ntkpipe.configs.cluster import StorageConfig
from ntkpipe.configs.described import Group
from ntkpipe.pipeline.prediction.arithmetic import EXTRA_REQUESTS
from ntkpipe.pipeline.prediction.durations import Times, family
from ntkpipe.pipeline.simulation.account import Account
from ntkpipe.pipeline.simulation.bandwidth import Moved, SharedStorage
from ntkpipe.pipeline.simulation.chance import Draws
from ntkpipe.pipeline.simulation.machines import Node
from ntkpipe.pipeline.simulation.memory import KeptSides
from ntkpipe.storage.records import ObjectRecord
from ntkpipe.workers.tasks import KernelTask, SolvePartTask, SolveStepTask, SolveTask, Task, TaskResult

UNMOVED: Final = Moved(0.0, 0.0, 0.0)


class TaskTimes(Protocol):
    """Knows how long a task takes on a kind of worker."""

    def times(self, task: Task) -> Times:
        """Return what it takes."""


@final
@dataclass(frozen=True, slots=True)
class Habits:
    """What is the same for all workers of a run."""

    start_seconds: float = 0.0
    """Of a worker's process, on a node that is there."""
    kept_sides: int = 0
    """Rows and columns of kernel blocks whose features fit in a worker's memory."""
    first_seconds: Mapping[str, float] = field(default_factory=dict)
    """By how much the very first task of a worker takes longer, by family of stages."""
    checkpoint_seconds: float = math.inf
    """Between two stored states of a solver."""


@dataclass(slots=True, eq=False)
class Process:
    """A worker; the first of its tasks is being worked on."""

    number: int
    group: Group
    times: TaskTimes
    kept: KeptSides
    asked_at: float
    node: Node | None = None
    is_ready: bool = False
    is_gone: bool = False
    """Nothing more happens to it."""
    tasks: deque[Task] = field(default_factory=deque)
    is_new: bool = True
    """Whether it has not begun any task: the first one also loads model and data."""
    label: str = ""
    since: float = 0.0
    """When it began what it is doing: to start, to work, or to do nothing."""
    computing: float = 0.0
    """Of the task under way."""
    taken: Times | None = None
    read: Moved = UNMOVED
    own_read: float = 0.0
    bytes_read: int = 0
    chunks_read: int = 0


@final
class Labour:
    """Carries out tasks, and counts what they took.

    Args:
        storage: Of the run.
        habits: Of all workers.
        draws: Random numbers.
    """

    def __init__(self, storage: StorageConfig, habits: Habits, draws: Draws) -> None:
        self.shared = SharedStorage(storage)
        self.account = Account()
        self.shared_seconds = 0.0
        """Of workers, in rounds of shared solves."""
        self.num_lost = self.sides_read = self.bytes_read = self.bytes_written = self.num_writes = 0
        self._habits = habits
        self._draws = draws
        self._solved: dict[str, float] = {}
        self.steps: Counter[str] = Counter()
        """Of shared solves that have been taken, their set-ups included, by solution."""

    def begin(self, process: Process, now: float) -> float:
        """Begin to work on a worker's first task; return when it is computed."""
        task = process.tasks[0]
        found = process.times.times(task)
        compute, read, num_bytes, num_reads = found.compute, found.read, found.bytes_read, found.num_reads
        if isinstance(task, KernelTask):
            if process.kept.has_rows_of(task.block):
                compute -= found.kept
            if num_bytes:
                share = self._share_read(process, task, found)
                read, num_bytes = read * share, round(num_bytes * share)
                # Its look at the lock and at receipts is never saved.
                num_reads = EXTRA_REQUESTS + round((num_reads - EXTRA_REQUESTS) * share)
        elif isinstance(task, SolveTask):
            compute *= 1 - self._solved.get(task.name, 0.0)
        if process.is_new:
            process.is_new = False
            compute += self._habits.first_seconds.get(family(task.stage), 0.0)
        assert process.node is not None
        compute *= self._draws.task_factor() * process.node.factor
        process.taken, process.computing, process.since = found, compute, now
        process.read = self.shared.read(now, read, num_bytes, num_reads)
        process.own_read, process.bytes_read, process.chunks_read = read, num_bytes, max(0, num_reads - EXTRA_REQUESTS)
        return process.read.at + compute

    def write(self, process: Process, now: float) -> Moved:
        """Write what was computed; return when that is done."""
        found = process.taken
        assert found is not None
        self.num_writes += found.num_writes
        return self.shared.write(now, found.write, found.bytes_written, found.num_writes)

    def finish(self, process: Process, now: float, written: Moved) -> TaskResult:
        """Return what a worker says of a finished task."""
        found, account = process.taken, self.account
        assert found is not None
        account.computing += process.computing
        account.storage += process.own_read + found.write
        account.bandwidth += process.read.bandwidth + written.bandwidth
        account.requests += process.read.requests + written.requests
        self.bytes_read += process.bytes_read
        self.bytes_written += found.bytes_written
        objects, seconds = _written(found.bytes_written), now - process.since
        task = process.tasks.popleft()
        if isinstance(task, SolveStepTask):
            self.steps[task.name] += 1
        if isinstance(task, SolveStepTask | SolvePartTask):
            self.shared_seconds += seconds
        process.since = now
        return TaskResult((), objects, seconds, process.label, {}, process.bytes_read, process.chunks_read)

    def leave(self, process: Process, now: float) -> None:
        """Count the time of a worker that is gone."""
        passed = now - process.since
        if process.node is None:
            return
        if not process.is_ready:
            self.account.starting += passed
        elif not process.tasks:
            self.account.waiting += passed
        else:
            self.num_lost += 1
            self.account.lost += passed
            if isinstance(process.tasks[0], SolveTask):
                self._keep_state(process, process.tasks[0].name, passed)

    def last_state(self, solution: str) -> str:
        """Name the last state that the solver of a solution has stored; later ones come later in the alphabet."""
        share = self._solved.get(solution)
        return "" if share is None else f"{share:.12f}"

    def _keep_state(self, process: Process, name: str, passed: float) -> None:
        """Keep what a solver has stored of its work; it goes on from there."""
        every, before = self._habits.checkpoint_seconds, self._solved.get(name, 0.0)
        stored = passed - passed % every if every else passed
        if stored and process.computing:
            self._solved[name] = before + (1 - before) * min(1.0, stored / process.computing)

    def _share_read(self, process: Process, task: KernelTask, found: Times) -> float:
        """Return which part of the features of a block has to be read."""
        rows, columns = process.kept.look_at(task.block)
        self.sides_read += rows + columns
        of_rows = found.kept_bytes / found.bytes_read
        return (of_rows if rows else 0.0) + (1 - of_rows if columns else 0.0)


@lru_cache(maxsize=1024)
def _written(num_bytes: int) -> tuple[ObjectRecord, ...]:
    """Return what a receipt says of bytes that nobody has written."""
    return (ObjectRecord(crc32c="00000000", nbytes=num_bytes, key="simulated"),)
