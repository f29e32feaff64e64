"""What goes wrong by chance, and the random numbers that it is drawn from: the same seed gives the same run."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np

DRAWN_AT_ONCE: Final = 4096

TASK_SPREAD: Final = 0.1
"""Standard deviation of the logarithm of a task's computing time, beside tasks of the same size."""

LOST_SECONDS: Final = 15.0
"""Until Ray, as it is configured by default, takes a node that does not answer for dead."""


@dataclass(frozen=True, slots=True)
class Join:
    """Nodes that join a run while it goes on."""

    at: float
    """Seconds after its beginning."""
    group: str
    nodes: int


@dataclass(frozen=True, slots=True)
class Chance:
    """How even workers are, and what becomes of nodes."""

    task_spread: float = TASK_SPREAD
    """Standard deviation of the logarithm of a task's computing time; 0 for tasks that take exactly what is predicted."""
    slow_nodes: float = 0.0
    """Share of the nodes that are slow."""
    slow_factor: float = 2.0
    """How many times longer these compute."""
    failures: bool = True
    """Whether nodes are lost, as often as their groups say."""
    notice_seconds: float = 0.0
    """Before a node is lost it says so, and takes no new tasks; 0 for nodes that crash."""
    lost_seconds: float = LOST_SECONDS
    """Until it is noticed that a node is gone."""
    joins: tuple[Join, ...] = ()


EVEN: Final = Chance(task_spread=0.0, failures=False)
"""Nothing happens by chance."""


@final
class Draws:
    """Random numbers of a simulation, each kind from a stream of its own.

    Args:
        seed: Of all of them.
        chance: What they are for.
    """

    def __init__(self, seed: int, chance: Chance) -> None:
        self._chance = chance
        self._nodes = np.random.Generator(np.random.Philox(key=np.array([seed, 1], dtype=np.uint64)))
        self._tasks = np.random.Generator(np.random.Philox(key=np.array([seed, 2], dtype=np.uint64)))
        self._factors = self._lognormal()

    def task_factor(self) -> float:
        """Return how many times longer than predicted a task computes; 1 on average."""
        return next(self._factors)

    def node_factor(self) -> float:
        """Return how many times longer than the device's figures say a node computes."""
        is_slow = float(self._nodes.random()) < self._chance.slow_nodes
        return self._chance.slow_factor if is_slow else 1.0

    def lifetime(self, mean_seconds: float) -> float:
        """Return after how many seconds a node is lost."""
        return float(self._nodes.exponential(mean_seconds))

    def _lognormal(self) -> Iterator[float]:
        spread = self._chance.task_spread
        while not spread:
            yield 1.0
        while True:
            found = self._tasks.lognormal(-(spread**2) / 2, spread, DRAWN_AT_ONCE)
            # One by one from a list: a call of NumPy for each task would take longer than all else that is done for it.
            yield from (value for value in found.tolist() if math.isfinite(value))
