"""How far a solve is and how long it will take, from the steps that it has taken: said to whoever watches."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from ntkpipe.configs.units import duration
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractPartitionedSolver, AbstractSolver
from ntkpipe.workers.solvers.loop import Position

REPORT_SECONDS = 2.0


@final
@dataclass(frozen=True, slots=True)
class Report:
    """How far a solve is."""

    position: Position
    num_parts: int
    """Of the next step; 0 for a solver whose steps have none."""
    predicted_seconds: float | None
    """That the whole solve will take if residuals go on to shrink as they have; None while nobody can tell."""

    def __str__(self) -> str:
        """Return it as a sentence."""
        state = self.position.state
        parts = [f"step {state.steps}", f"{self.position.passes:.1f} passes"]
        if math.isfinite(state.residual):
            parts.append(f"residual {state.residual:.1e} (not yet certified)")
        spent = duration(self.position.seconds)
        if self.predicted_seconds is not None:
            spent = f"{spent} of about {duration(self.predicted_seconds)}"
        return ", ".join([*parts, spent])


@final
class Watcher:
    """Turns positions into reports, at most one every two seconds unless it is asked.

    Args:
        solver: Whose steps are watched.
        operator: What it solves with.
        tolerance: At which it stops; None for a solver without one.
        tell: Takes the reports.
    """

    def __init__(
        self,
        solver: AbstractSolver[Any],
        operator: AbstractOperator,
        tolerance: float | None,
        tell: Callable[[Report], None],
    ) -> None:
        self._num_parts = solver.num_parts(operator) if isinstance(solver, AbstractPartitionedSolver) else 0
        self._tolerance = tolerance
        self._tell = tell
        self._told_at = time.monotonic()
        self._first: Position | None = None

    def observe(self, position: Position) -> None:
        """Report a position unless the last report is recent."""
        if self._first is None:
            self._first = position
        if time.monotonic() - self._told_at >= REPORT_SECONDS:
            self.report(position)

    def report(self, position: Position) -> None:
        """Report a position."""
        self._told_at = time.monotonic()
        self._tell(Report(position, self._num_parts, self._predicted(position)))

    def _predicted(self, position: Position) -> float | None:
        first, state = self._first, position.state
        if first is None or self._tolerance is None or state.status is not None:
            return None
        steps, before, now = state.steps - first.state.steps, first.state.residual, state.residual
        if steps < 1 or not (now > 0 and before > now > self._tolerance):
            return None
        left = steps * math.log(now / self._tolerance) / math.log(before / now)
        return position.seconds + left * (position.seconds - first.seconds) / steps
