"""The loop around a solver: steps, checkpoints, early stopping, and the certificate at the end."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.workers.operators.metered import MeteredOperator
from ntkpipe.workers.solvers.base import AbstractPartitionedSolver, AbstractSolver, Evidence, SolverState
from ntkpipe.workers.solvers.certificate import Certificate, backward_errors, flags
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.system import System

CHECKPOINT_SECONDS = 30.0
"""Between two stored states; a kill loses at most that, and the step that is being taken."""


@final
@dataclass(frozen=True, slots=True)
class Position:
    """Where a solve is: all that is needed to go on."""

    state: SolverState
    parts: int = 0
    """How many parts of the next step are in ``total``; 0 for a solver without parts."""
    total: torch.Tensor | None = None
    """Their sum."""
    passes: float = 0.0
    """Read so far, see :class:`MeteredOperator`."""
    bytes_read: float = 0.0
    seconds: float = 0.0
    best_NT: torch.Tensor | None = None
    """The coefficients that did best on the validation split, if there is one."""
    best_loss: float = math.inf
    steps_since_best: int = 0


class AbstractCheckpoint(ABC):
    """Where positions are kept."""

    @abstractmethod
    def load(self, state_type: type[SolverState]) -> Position | None:
        """Return the last position that was saved, None if there is none."""

    @abstractmethod
    def save(self, position: Position) -> None:
        """Keep a position in place of the last one."""


@final
@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """Ends a solve when it gets worse on samples that are held out, with the coefficients that did best."""

    loss: Callable[[torch.Tensor], float]
    """Of the solver's coefficients, (N, T)."""
    patience: int
    """Steps without a smaller loss after which the solve ends."""
    from_start: bool = False
    """Whether the coefficients before the first step may be the best, as those of a warm start may."""


@final
class SolveLoop:
    """One solve, from its set-up or from where it was stored.

    Args:
        solver: Takes the steps.
        system: What is solved; what is read of it is counted.
        checkpoint: Keeps positions; None for a solve that is not kept.
        early_stopping: Ends the solve before it has converged.
        checkpoint_seconds: Between two positions that are kept.
        observe: Is told every position, after the set-up and after every step.
    """

    def __init__(
        self,
        solver: AbstractSolver[Any],
        system: System,
        *,
        checkpoint: AbstractCheckpoint | None = None,
        early_stopping: EarlyStopping | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        observe: Callable[[Position], None] | None = None,
    ) -> None:
        self._solver = solver
        self._checkpoint = checkpoint
        self._early_stopping = early_stopping
        self._checkpoint_seconds = checkpoint_seconds
        self._observe = observe
        self._metered = MeteredOperator(system.operator)
        self._system = replace(system, operator=self._metered)
        self._spent_before = 0.0
        self._started = self._saved_at = time.perf_counter()

    @property
    def solver(self) -> AbstractSolver[Any]:
        """Takes the steps."""
        return self._solver

    @property
    def system(self) -> System:
        """What is solved; what is read of it is counted."""
        return self._system

    @property
    def read(self) -> tuple[float, float]:
        """Passes and bytes read so far."""
        return self._metered.passes, self._metered.bytes_read

    def take_up(self) -> Position | None:
        """Go to the last position that was kept; None if there is none."""
        stored = self._checkpoint.load(self._solver.state_type) if self._checkpoint is not None else None
        self._started = time.perf_counter()
        self._spent_before, self._metered.passes, self._metered.bytes_read = (
            (stored.seconds, stored.passes, stored.bytes_read) if stored is not None else (0.0, 0.0, 0.0)
        )
        return stored

    def run(self) -> Position:
        """Go on from what was kept, or set up, and step until there is nothing more to do or it does not help."""
        position = self.take_up() or self.set_up()
        while position.state.status is None:
            position = self._step(position)
        return position

    def set_up(self) -> Position:
        """Set the solver up."""
        position = Position(self._solver.init(self._system))
        if self._early_stopping is not None and self._early_stopping.from_start:
            loss = self._early_stopping.loss(position.state.alpha_NT)
            position = replace(position, best_NT=position.state.alpha_NT, best_loss=loss)
        return self._note(position)

    def absorb(
        self,
        position: Position,
        total: torch.Tensor,
        *,
        passes: float = 0.0,
        bytes_read: float = 0.0,
        seconds: float = 0.0,
    ) -> Position:
        """Finish a step whose parts have all been added up; what others have read and spent for them is counted."""
        self._metered.passes += passes
        self._metered.bytes_read += bytes_read
        self._spent_before += seconds
        assert isinstance(self._solver, AbstractPartitionedSolver)
        state = self._solver.absorb(self._system, position.state, total)
        return self._note(self._validated(position, replace(position, state=state, parts=0, total=None)))

    def solution(self, position: Position) -> Solution:
        """Certify where the solve has ended; one more pass over the matrix.

        Raises:
            NumericalError: Coefficients or residuals overflow.
        """
        state = position.state
        if position.best_NT is not None and state.status == "stopped-early":
            state = replace(state, alpha_NT=position.best_NT)
        system = self._system if math.isnan(state.ridge) else replace(self._system, ridge=state.ridge)
        evidence = self._solver.certify(system, state)
        _check_finite(self._solver.method, state, evidence)
        assert state.status is not None
        diagonal = float(system.operator.diagonal().double().abs().max())
        certificate = Certificate(
            equation=self._solver.equation,
            residuals=evidence.residuals_T,
            backward_errors=backward_errors(system, state, evidence, diagonal)
            if self._solver.equation == "ridge"
            else evidence.residuals_T.new_empty(0),
            condition=state.largest / state.smallest if state.smallest > 0 else math.nan,
            jitter=state.jitter,
            steps=state.steps,
            passes=self._metered.passes,
            bytes_read=self._metered.bytes_read,
            flags=flags(system, state, diagonal),
        )
        return Solution(
            alpha=state.alpha_NT.double(),
            fitted=evidence.fitted_NT,
            ridge=system.ridge,
            status=state.status,
            method=self._solver.method,
            certificate=certificate,
            seconds=self._seconds(),
            extras=self._solver.extras(state),
        )

    def _step(self, position: Position) -> Position:
        solver = self._solver
        if not isinstance(solver, AbstractPartitionedSolver):
            state = solver.step(self._system, position.state)
            return self._note(self._validated(position, replace(position, state=state)))
        part = position.parts
        summand = solver.partial(self._system, position.state, part)
        total = summand if position.total is None else position.total.add_(summand)
        if part + 1 == solver.num_parts(self._system.operator):
            return self.absorb(position, total)
        return self._note(replace(position, parts=part + 1, total=total))

    def _validated(self, before: Position, position: Position) -> Position:
        """Compare a step with the best one on the samples that are held out."""
        state = position.state
        ended = state.status is not None
        # A step that found no new coefficients, as those of a factorisation before its last one, says nothing.
        if self._early_stopping is None or (not ended and torch.equal(state.alpha_NT, before.state.alpha_NT)):
            return position
        # What held-out samples like is no excuse for a matrix that cannot be solved with.
        if state.status in ("indefinite", "diverged"):
            return position
        loss = self._early_stopping.loss(state.alpha_NT)
        if loss < position.best_loss or (ended and loss == position.best_loss):
            return replace(position, best_NT=state.alpha_NT, best_loss=loss, steps_since_best=0)
        position = replace(position, steps_since_best=position.steps_since_best + 1)
        if not ended and position.steps_since_best < self._early_stopping.patience:
            return position
        return replace(position, state=replace(state, status="stopped-early"))

    def _note(self, position: Position) -> Position:
        """Count what was spent, and keep the position if it is time."""
        position = replace(
            position,
            passes=self._metered.passes,
            bytes_read=self._metered.bytes_read,
            seconds=self._seconds(),
        )
        now = time.perf_counter()
        if self._checkpoint is not None and now - self._saved_at >= self._checkpoint_seconds:
            self._checkpoint.save(position)
            self._saved_at = time.perf_counter()
        if self._observe is not None and position.parts == 0:
            self._observe(position)
        return position

    def _seconds(self) -> float:
        return self._spent_before + time.perf_counter() - self._started


def _check_finite(method: str, state: SolverState, evidence: Evidence) -> None:
    """Refuse to return what has no numbers; solvers end with finite ones unless a product of entries overflows."""
    for what, values in (("coefficients", state.alpha_NT), ("residuals", evidence.residuals_T)):
        if not torch.isfinite(values).all():
            raise NumericalError(
                f"the {what} of {method} are NaN or infinite after {state.steps} steps, although the matrix and the "
                "targets are finite: products of them overflow. Divide kernel and ridge by a constant."
            )
