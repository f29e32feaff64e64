"""How long a solve will take, from the steps that it has taken: said to whoever watches."""

import math
import time
from collections.abc import Callable
from typing import final

from ntkpipe.storage.solver_state import SolveProgress
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractPartitionedSolver, AbstractSolver, SolverState
from ntkpipe.workers.solvers.checkpoint import place
from ntkpipe.workers.solvers.loop import Position

REPORT_SECONDS = 2.0


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
        solver: AbstractSolver[SolverState],
        operator: AbstractOperator,
        tolerance: float | None,
        tell: Callable[[SolveProgress], None],
    ) -> None:
        self._num_parts = solver.num_parts(operator) if isinstance(solver, AbstractPartitionedSolver) else 0
        self._tolerance = tolerance
        self._tell = tell
        self._told_at = -math.inf
        self._first: Position | None = None

    def observe(self, position: Position) -> None:
        """Report a position unless the last report is recent."""
        if self._first is None:
            self._first = position
        if position.state.status is not None or time.monotonic() - self._told_at >= REPORT_SECONDS:
            self.report(position)

    def report(self, position: Position) -> None:
        """Report a position."""
        state = position.state
        self._told_at = time.monotonic()
        self._tell(
            SolveProgress(
                place=place(position),
                num_parts=self._num_parts,
                finished=state.status is not None,
                steps=state.steps,
                passes=position.passes,
                seconds=position.seconds,
                residual=state.residual if math.isfinite(state.residual) else None,
                predicted_seconds=self._predicted(position),
            )
        )

    def _predicted(self, position: Position) -> float | None:
        """Return the seconds that the whole solve will take if residuals go on to shrink as they have."""
        first, state = self._first, position.state
        if first is None or self._tolerance is None or state.status is not None:
            return None
        steps, before, now = state.steps - first.state.steps, first.state.residual, state.residual
        if steps < 1 or not (now > 0 and before > now > self._tolerance):
            return None
        left = steps * math.log(now / self._tolerance) / math.log(before / now)
        return position.seconds + left * (position.seconds - first.seconds) / steps
