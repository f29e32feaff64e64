"""What is kept of the events of a run: sums, extremes, and of what could be many only the first or the largest."""

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import final

RATIO = 1.05
"""Between the boundaries of the bins in which durations are counted, so that quantiles are known to within 5 %."""

SHORTEST = 1e-4
"""Seconds; what is shorter counts as this long."""


@final
class Durations:
    """How long tasks took; memory is O(1)."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.number = 0
        self.total = self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count a task."""
        self._counts[round(math.log(max(seconds, SHORTEST) / SHORTEST, RATIO))] += 1
        self.number += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    @property
    def mean(self) -> float:
        """Zero without any."""
        return self.total / self.number if self.number else 0.0

    def quantile(self, share: float) -> float:
        """Return what a share of the tasks did not exceed."""
        seen = 0
        for position in sorted(self._counts):
            seen += self._counts[position]
            if seen >= share * self.number:
                return min(SHORTEST * RATIO**position, self.longest)
        return 0.0


@dataclass(slots=True)
class Tenure:
    """One driver's time with the run."""

    epoch: int
    host: str
    process: str
    clock_at: float
    """Of its first event, by its own clock."""
    start: float
    """On the time axis of the report."""
    stop: float
    gap_seconds: float = 0.0
    """Since the driver before it, by the clocks of both; the axis shows less of a long one."""
    ending: str = ""
    """In its own words; empty for a driver that was killed or still works."""
    commits: int = 0
    failures: int = 0


@dataclass(slots=True)
class StageFacts:
    """A stage over all tenures; stages of one family, such as those of a factorisation, are one."""

    durations: Durations = field(default_factory=Durations)
    num_bytes: float = 0.0
    bytes_read: float = 0.0
    chunks_read: float = 0.0
    failures: int = 0
    start: float = math.inf
    """Of the first task, on the time axis."""
    stop: float = 0.0
    """Of the last one."""
    reads: Counter[int] = field(default_factory=Counter)
    """Tasks by how many chunks they read, where that was recorded."""

    @property
    def seconds(self) -> float:
        """From its first task to its last."""
        return max(self.stop - self.start, 0.0)


@dataclass(slots=True)
class WorkerFacts:
    """A worker process, as far as events name it."""

    tasks: int = 0
    busy_seconds: float = 0.0
    num_bytes: float = 0.0
    bytes_read: float = 0.0
    peak_bytes: float = 0.0
    failures: int = 0
    device: str = ""
    state: str = ""
    start: float = math.inf
    stop: float = 0.0
    by_stage: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Tasks and seconds, from which its speed follows."""

    @property
    def seconds(self) -> float:
        """From when it was first heard of until it was last heard of."""
        return max(self.stop - self.start, 0.0)

    def see(self, start: float, stop: float) -> None:
        """Note that it was there."""
        self.start, self.stop = min(self.start, start), max(self.stop, stop)


@dataclass(frozen=True, slots=True)
class Span:
    """A task on the time axis."""

    worker: str
    stage: str
    task: str
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class Fault:
    """A failed attempt, or a worker that was lost."""

    epoch: int
    at: float
    """On the time axis."""
    stage: str
    task: str
    kind: str
    message: str
    verdict: str
    worker: str


@final
class Largest:
    """The slowest tasks; memory is O(how many are kept)."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._heap: list[tuple[float, int, Span]] = []
        self._seen = 0

    def add(self, seconds: float, span: Span) -> None:
        """Keep a task if it is among them."""
        self._seen += 1
        if len(self._heap) < self._number:
            heapq.heappush(self._heap, (seconds, self._seen, span))
        elif seconds > self._heap[0][0]:
            heapq.heapreplace(self._heap, (seconds, self._seen, span))

    def sorted(self) -> list[tuple[float, Span]]:
        """Return seconds and tasks, slowest first."""
        return [(seconds, span) for seconds, _, span in sorted(self._heap, key=lambda item: (-item[0], item[1]))]
