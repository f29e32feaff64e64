"""Who is there, what everybody has to do, and who should be given the next task."""

import math
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final, final

from ntkpipe.pipeline.scheduling.speeds import Speeds
from ntkpipe.workers.tasks import Task

TASKS_PER_WORKER: Final = 2
"""One computes, one waits, which hides the round trip."""

QUICK_SECONDS: Final = 0.1
"""For a task that takes less, a round trip costs more than an uneven end of its stage."""

EVEN_FACTOR: Final = 1.5
"""A worker that is slower than the fastest by less than this may always have a task when it has none."""


@dataclass(slots=True)
class Call:
    """An attempt at a task that a worker has been given."""

    task: Task
    halvings: int


@dataclass(slots=True)
class Member:
    """A worker and its tasks in the order in which it gets to them."""

    worker: int
    pool: int
    since: float
    """When it was started, or when the first of its tasks was."""
    label: str = ""
    device: str = ""
    calls: deque[Call] = field(default_factory=deque)
    is_ready: bool = False
    is_draining: bool = False
    failed_starts: int = 0

    @property
    def is_taking(self) -> bool:
        """Whether it takes tasks."""
        return self.is_ready and not self.is_draining


@final
class Roster:
    """Workers by number.

    Args:
        speeds: Tell how long they take.

    Attributes:
        num_taking: How many of them take tasks.
    """

    def __init__(self, speeds: Speeds) -> None:
        self.num_taking = 0
        self._speeds = speeds
        self._members: dict[int, Member] = {}
        # Of those that can be given something, by how many tasks they have; in the order in which they got there.
        self._with_room: tuple[dict[int, None], ...] = tuple({} for _ in range(TASKS_PER_WORKER))
        self._stage = ""

    def __len__(self) -> int:
        """Return how many there are, in whatever state."""
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        """Iterate over all of them; nobody may come or go meanwhile."""
        return iter(self._members.values())

    def __getitem__(self, worker: int) -> Member:
        """Return one of them."""
        return self._members[worker]

    def get(self, worker: int) -> Member | None:
        """Return one; None if it is gone."""
        return self._members.get(worker)

    def add(self, member: Member) -> None:
        """Take in a worker that is being started."""
        self._members[member.worker] = member
        self._speeds.add(member.worker, member.pool)

    def remove(self, member: Member) -> None:
        """Forget a worker that is gone."""
        self._leave_room(member)
        self.num_taking -= member.is_taking
        del self._members[member.worker]
        self._speeds.forget(member.worker)

    def clear(self) -> None:
        """Forget all of them."""
        for member in list(self):
            self.remove(member)

    def welcome(self, member: Member) -> None:
        """Let a worker that has started take tasks."""
        member.is_ready = True
        self.num_taking += member.is_taking
        self._make_room(member)

    def drain(self, member: Member) -> None:
        """Let a worker take no more tasks."""
        self._leave_room(member)
        self.num_taking -= member.is_taking
        member.is_draining = True

    def give(self, member: Member, call: Call) -> None:
        """Add to what a worker has."""
        self._leave_room(member)
        member.calls.append(call)
        self._make_room(member)
        self._stage = call.task.stage

    def take(self, member: Member) -> Call:
        """Take what a worker is done with."""
        self._leave_room(member)
        call = member.calls.popleft()
        self._make_room(member)
        return call

    def next_worker(self, num_left: int, now: float) -> int | None:
        """Return the worker that will be done first with a task that it is given now, if it is worth giving it one.

        Args:
            num_left: Tasks that nobody has been given.
            now: The time.
        """
        idle, busy = self._with_room
        if not num_left or not (idle or busy):
            return None
        if num_left >= TASKS_PER_WORKER * self.num_taking * self._speeds.spread:
            return next(iter(idle or busy))
        fastest = self._speeds.fastest(self._stage)
        if fastest is None:
            return next(iter(idle or (busy if num_left >= self.num_taking else {})), None)
        worker = self._first_done(idle, num_left, fastest, now)
        # What is left goes to whoever is idle first, if it is worth the round trip.
        if worker is None and (num_left >= self.num_taking or fastest <= QUICK_SECONDS):
            worker = self._first_done(busy, num_left, fastest, now)
        return worker

    def _first_done(self, workers: Collection[int], num_left: int, fastest: float, now: float) -> int | None:
        """Return who will be done first with one more task; None if the others will be done with all that is left by then.

        If nobody has a task there always is one: by then the others are not done with any.
        """
        usual = next((worker for worker in workers if self._expected(worker) <= EVEN_FACTOR * fastest), None)
        if usual is not None or not workers:
            return usual
        ends = {worker: self._rest(self._members[worker], now) + self._expected(worker) for worker in workers}
        best = min(ends, key=lambda worker: ends[worker])
        others = 0
        for member in self._members.values():
            if member.is_taking and member.worker != best:
                spare = ends[best] - self._rest(member, now)
                others += max(0, math.floor(spare / self._expected(member.worker) - 1e-6))
                if others >= num_left:
                    return None
        return best

    def _expected(self, worker: int) -> float:
        """Return how many seconds a task of the stage under way takes a worker; without end if nobody can tell."""
        return self._speeds.expected(worker, self._stage) or math.inf

    def _rest(self, member: Member, now: float) -> float:
        """Return in how many seconds a worker will be done with what it has; one that is late, as late again."""
        if not member.calls:
            return 0.0
        first, *others = [self._speeds.expected(member.worker, call.task.stage) or 0.0 for call in member.calls]
        passed = now - member.since
        return (first - passed if passed < first else passed) + sum(others)

    def _leave_room(self, member: Member) -> None:
        if len(member.calls) < TASKS_PER_WORKER:
            self._with_room[len(member.calls)].pop(member.worker, None)

    def _make_room(self, member: Member) -> None:
        if member.is_taking and len(member.calls) < TASKS_PER_WORKER:
            self._with_room[len(member.calls)][member.worker] = None
