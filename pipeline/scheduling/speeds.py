"""How long tasks take, learned from those that are finished."""

from dataclasses import dataclass
from typing import Final, final

EVEN_STAGES: Final = ("features", "kernel", "derive-", "factor-")
"""Whose tasks are about equal, so that what one took tells what the next will take."""

ENOUGH: Final = 5
"""Finished tasks of a stage before a deadline is taken from them."""

MIN_DEADLINE_SECONDS: Final = 60.0
"""No task is called late before that: a machine may be busy with something else for a while."""

MEMORY: Final = 0.25
"""Share of the newest task in an average."""

KEPT_STAGES: Final = 4
"""Of which a worker's own seconds are kept; no more are ever under way."""

FAST_ONE_IN: Final = 10
"""Of the workers of a pool, how many count as its fast ones."""

SHORTEST_SECONDS: Final = 1e-6
"""Of a task, so that ratios exist."""


@dataclass(slots=True)
class _Own:
    """A worker's tasks of a stage."""

    seconds: float
    """Of its first task, as long as there is no other one; then the average of the others."""
    num: int = 1


@dataclass(slots=True)
class _Stage:
    """All workers' tasks of a stage."""

    first: float
    """What the first task of a worker takes, on the average."""
    mean: float | None = None
    """What another task takes on a worker whose factor is 1; None if nobody has finished a second one."""
    num: int = 1


@final
class Speeds:
    """Average seconds of tasks by stage, and how many times longer than others each worker takes.

    What a worker's own tasks of a stage took tells best what its next one will take. Where it has none, the stage's
    average tells, times how much slower than others the worker was in other stages, or the workers of its pool are. The
    first task of a worker in a stage also loads what all the others use: it only tells what other first ones take.

    Args:
        task_seconds: The longest that any task may take.
        slow_factor: How many times longer than expected a task may take.
    """

    def __init__(self, task_seconds: float, slow_factor: float) -> None:
        self._task_seconds = task_seconds
        self._slow_factor = slow_factor
        self._stages: dict[str, _Stage] = {}
        self._own: dict[int, dict[str, _Own]] = {}
        self._factors: dict[int, float] = {}
        self._pool_factors: dict[int, float] = {}
        self._pools: dict[int, int] = {}
        self._fastest = self._slowest = 1.0
        self._num_news = 0

    def add(self, worker: int, pool: int) -> None:
        """Learn of a worker and the pool it belongs to."""
        self._pools[worker] = pool

    def forget(self, worker: int) -> None:
        """A worker is gone."""
        for table in (self._pools, self._factors, self._own):
            table.pop(worker, None)

    def learn(self, worker: int, stage: str, seconds: float) -> None:
        """Take in what a finished task took."""
        if not stage.startswith(EVEN_STAGES):
            return
        seconds = max(seconds, SHORTEST_SECONDS)
        is_first = self._learn_own(worker, stage, seconds)
        known = self._stages.get(stage)
        if known is None:
            known = self._stages[stage] = _Stage(seconds)
        else:
            known.num += 1
            if is_first:
                known.first = _moved(known.first, seconds)
        if not is_first:
            self._learn_factor(worker, known, seconds)

    def factor(self, worker: int) -> float:
        """Return how many times longer than others this worker takes."""
        return self._factors.get(worker) or self._pool_factors.get(self._pools[worker], 1.0)

    def expected(self, worker: int, stage: str) -> float | None:
        """Return how many seconds the next task of a stage will take; None if nobody can tell."""
        known = self._stages.get(stage)
        if known is None:
            return None
        own = self._own.get(worker, {}).get(stage)
        if own is not None and (own.num > 1 or known.mean is None):
            return own.seconds
        usual = 0.0 if known.mean is None else known.mean * self.factor(worker)
        return usual if own is not None else max(usual, known.first)

    def fastest(self, stage: str) -> float | None:
        """Return how many seconds a task of a stage takes on about the fastest worker; None if nobody can tell."""
        known = self._stages.get(stage)
        if known is None:
            return None
        return known.first if known.mean is None else known.mean * self._fastest

    @property
    def spread(self) -> float:
        """How many times slower the slowest worker is than the fastest, about."""
        return self._slowest / self._fastest

    def deadline(self, worker: int, stage: str, num_late: int) -> float:
        """Return after how many seconds a task is taken from a worker.

        Args:
            worker: That has it.
            stage: Of the task.
            num_late: How often it was taken from a worker before; each time it is given twice as long.
        """
        known, expected = self._stages.get(stage), self.expected(worker, stage)
        # Of a pool that has not finished anything nobody knows how slow it is.
        if known is None or expected is None or known.num < ENOUGH or self._pools[worker] not in self._pool_factors:
            return self._task_seconds
        return min(self._task_seconds, max(MIN_DEADLINE_SECONDS, self._slow_factor * expected) * 2.0**num_late)

    def _learn_own(self, worker: int, stage: str, seconds: float) -> bool:
        """Add to a worker's own tasks; return whether it is the first of its stage."""
        table = self._own.setdefault(worker, {})
        own = table.get(stage)
        if own is None:
            while len(table) >= KEPT_STAGES:
                del table[next(iter(table))]
            table[stage] = _Own(seconds)
            return True
        own.seconds = seconds if own.num == 1 else _moved(own.seconds, seconds)
        own.num += 1
        return False

    def _learn_factor(self, worker: int, known: _Stage, seconds: float) -> None:
        """Compare a worker with the others."""
        factor = self._factors.get(worker)
        if known.mean is None:
            known.mean = seconds / self.factor(worker)
        elif factor is not None:
            # What others would have taken. One that nothing was known of does not move what is known of the others.
            known.mean = _moved(known.mean, seconds / factor)
        seen = seconds / known.mean
        self._factors[worker] = seen if factor is None else _moved(factor, seen)
        pool = self._pools[worker]
        self._pool_factors[pool] = _moved(self._pool_factors.get(pool, seen), seen)
        self._num_news += 1
        # Looking at all of them costs as much as there are.
        if self._num_news >= len(self._factors):
            self._num_news = 0
            self._fastest, self._slowest = self._fastest_usual(), max(self._factors.values())

    def _fastest_usual(self) -> float:
        """Return the factor of a fast worker of the fastest pool: of thousands, the very fastest is so by chance."""
        pools: dict[int, list[float]] = {}
        for worker, factor in self._factors.items():
            pools.setdefault(self._pools[worker], []).append(factor)
        return min(sorted(factors)[len(factors) // FAST_ONE_IN] for factors in pools.values())


def _moved(average: float, newest: float) -> float:
    """Return an average that has taken in another number."""
    return average + MEMORY * (newest - average)
