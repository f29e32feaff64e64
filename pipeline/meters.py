"""How fast the stages of a run are: one count for all who show it."""

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import final

WINDOW_SECONDS = 60.0
"""The rate of a stage is that of its last minute, so that it follows workers that come and go."""

SAMPLE_SECONDS = 1.0
"""Between two of the moments that are kept of that minute."""

Clock = Callable[[], float]


@final
class StageMeter:
    """What a stage has done since it began in this process.

    Attributes:
        done: Tasks that are finished, those of earlier drivers included.
        total: All its tasks.
        num_bytes: Written here.
    """

    def __init__(self, done: int, total: int, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self.done = done
        self.total = total
        self.num_bytes = 0
        self._started_at = self._last_at = clock()
        self._samples = deque([(self._started_at, done, 0)])

    def recount(self, done: int, total: int) -> None:
        """Learn anew how far the stage is; what others have finished says nothing of its rate."""
        added = done - self.done
        self.done, self.total = done, total
        self._samples = deque((at, before + added, num_bytes) for at, before, num_bytes in self._samples)

    def count(self, num_bytes: int) -> None:
        """Count a task that was finished."""
        self._last_at = now = self._clock()
        self.done += 1
        self.num_bytes += num_bytes
        if now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, self.done, self.num_bytes))
        while len(self._samples) > 2 and now - self._samples[1][0] > WINDOW_SECONDS:
            self._samples.popleft()

    def begin_rate(self) -> None:
        """Begin to measure now, unless something was finished: workers that were not there yet are not slow."""
        if self._last_at == self._started_at:
            self._samples = deque([(self._clock(), self.done, self.num_bytes)])

    @property
    def is_whole(self) -> bool:
        """Whether every task is finished."""
        return self.done >= self.total

    @property
    def seconds(self) -> float:
        """From the beginning to now, or to the last task once there is no other."""
        return max((self._last_at if self.is_whole else self._clock()) - self._started_at, 1e-9)

    def rates(self) -> tuple[float, float]:
        """Return tasks and bytes per second, of late; only what was finished here counts."""
        at, done, num_bytes = self._samples[0]
        seconds = max((self._last_at if self.is_whole else self._clock()) - at, 1e-9)
        return (self.done - done) / seconds, (self.num_bytes - num_bytes) / seconds

    @property
    def seconds_left(self) -> float | None:
        """At the rate of late; None where nothing was finished yet that tells."""
        if self.is_whole:
            return 0.0
        rate, _ = self.rates()
        return (self.total - self.done) / rate if rate > 0 else None


@final
class Meters:
    """A :class:`~ntkpipe.pipeline.events.Progress` that counts.

    Attributes:
        stages: By name, in the order in which they began.
        failed: Attempts that failed here, by stage; parts of a solve may fail before its stage begins.
        ready: Workers that take tasks; None before anybody has told.
        wanted: Workers that were asked for.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self.stages: dict[str, StageMeter] = {}
        self.failed: Counter[str] = Counter()
        self.ready: int | None = None
        self.wanted: int | None = None

    def stage(self, name: str, done: int, total: int) -> None:
        """Begin a stage, or learn anew how far it is."""
        if name in self.stages:
            self.stages[name].recount(done, total)
        else:
            self.stages[name] = StageMeter(done, total, self._clock)

    def task(self, name: str, num_bytes: int) -> None:
        """Count a task."""
        self.stages[name].count(num_bytes)

    def attempt_failed(self, name: str) -> None:
        """Count a failure."""
        self.failed[name] += 1

    def workers(self, ready: int, wanted: int) -> None:
        """Keep the numbers; the first worker to be ready begins what rates are measured from."""
        if ready and not self.ready:
            for meter in self.stages.values():
                meter.begin_rate()
        self.ready, self.wanted = ready, wanted

    def note(self, text: str) -> None:
        """Ignore it."""
