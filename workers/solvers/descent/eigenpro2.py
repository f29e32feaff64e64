"""EigenPro 2 with a nugget ridge: preconditioned stochastic gradient descent over stored rows.

Ma, Belkin: "Kernel machines that adapt to GPUs for effective large batch training" (MLSys 2019). The leading
eigendirections of the kernel, estimated on a subsample, are flattened, which raises the batch size up to which larger
batches converge faster. A ridge needs no other algorithm: K + ridge I is the matrix of the kernel with a nugget, so
that diagonal entries grow by the ridge and eigenvalues of K / N by ridge / N.

One thing differs from the published algorithm: step and batch size do not come from bounds for random batches, but
from the largest eigenvalue and the diagonal of the preconditioned matrices of the batches themselves. Stored rows are
often sorted by class, and for a batch of similar rows the bounds do not hold.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch

from ntkpipe.configs.solve.descent import EigenProSolve
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState, Status
from ntkpipe.workers.solvers.certificate import residual, ridge_evidence
from ntkpipe.workers.solvers.descent.flattening import Preconditioner, damping
from ntkpipe.workers.solvers.system import System

FLOAT32_TOLERANCE = 1e-5
"""Tighter tolerances than this are out of reach of float32 products."""

INDEFINITE = 1e-6
"""An eigenvalue below minus this share of the largest one is no rounding error."""

RELAXATION = 1.5
"""Step times largest eigenvalue of the batch; from 2 an update could grow the error."""

FIRST_BATCH_ROWS = 64
"""Until the critical batch size has been measured."""

DIVERGENCE = 10.0
"""An epoch whose residual exceeds the best one this many times is undone, and the step is halved."""

MIN_STEP_SCALE = 2.0**-10


@dataclass(frozen=True, slots=True, kw_only=True)
class EigenProState(SolverState):
    """Coefficients, preconditioner, batch size and step size."""

    constants: ClassVar[frozenset[str]] = frozenset({"subsample_S", "directions_SQ", "damping_Q"})

    subsample_S: torch.Tensor
    """Positions of the Nystrom points, ascending."""
    directions_SQ: torch.Tensor
    damping_Q: torch.Tensor
    """The preconditioner's, float64."""
    batch_rows: int
    """The critical batch size as last measured, at most a block of rows."""
    step_scale: float
    """Halved whenever an epoch is undone."""
    best_NT: torch.Tensor
    """Coefficients after the epoch with the smallest residual."""
    best_residual: float
    """That residual as met on the way, worst target; 1.0 for the zero start."""


@final
class EigenProSolver(AbstractSolver[EigenProState]):
    """One step is one epoch: every row once, in whole blocks of rows in random order.

    O(N^2 T + N s q) FLOPs per epoch, memory O(N T + s^2 + block of rows). Deterministic given the seed. Products are
    float32 where the operator is and the tolerance allows it, else float64. ``diverged`` means that no step was short
    enough or nothing better than zero was found; ``indefinite`` that the subsample proves K + ridge I to have a
    negative eigenvalue, or K + ridge I to be zero, and the answer is zero.
    """

    method = "eigenpro2"
    equation = "ridge"
    state_type = EigenProState

    def __init__(self, config: EigenProSolve) -> None:
        self._epochs = config.epochs
        self._tolerance = config.tolerance
        self._subsample = config.subsample
        self._top = config.top
        self._seed = config.seed

    def init(self, system: System) -> EigenProState:
        """Draw the Nystrom points and take the eigenpairs of their kernel matrix: up to one pass, O(s^3)."""
        operator, ridge = system.operator, system.ridge
        chosen = self._random(0).permutation(operator.size)[: self._subsample]
        subsample_S = torch.from_numpy(np.sort(chosen))
        eigenvalues_S, vectors_SS = (part.flip(-1) for part in torch.linalg.eigh(operator.submatrix(subsample_S)))
        bound = float(operator.diagonal().double().max()) + ridge
        # By interlacing, K + ridge I has an eigenvalue at least as negative as the subsample's.
        least, largest = float(eigenvalues_S[-1]) + ridge, float(eigenvalues_S[0]) + ridge
        indefinite = bound <= 0 or least < -INDEFINITE * largest
        damping_Q = (
            eigenvalues_S[:0]
            if indefinite
            else damping(
                eigenvalues_S,
                top=self._top,
                ridge=ridge,
                size=operator.size,
                bound=bound,
                batch_rows=operator.block_rows,
            )
        )
        return EigenProState(
            alpha_NT=torch.zeros_like(system.rhs_NT),
            status="indefinite" if indefinite else None,
            largest=float(eigenvalues_S[0]) * operator.size / len(subsample_S) + ridge,
            smallest=ridge if ridge > 0 else math.nan,
            subsample_S=subsample_S,
            directions_SQ=vectors_SS[:, : len(damping_Q)].contiguous(),
            damping_Q=damping_Q,
            batch_rows=min(FIRST_BATCH_ROWS, operator.block_rows),
            step_scale=1.0,
            best_NT=torch.zeros_like(system.rhs_NT),
            best_residual=1.0,
        )

    def step(self, system: System, state: EigenProState) -> EigenProState:
        """Run an epoch; recompute the true residual when it is expected to be small, and after the last epoch."""
        allowed = DIVERGENCE * max(state.best_residual, self._tolerance)
        best = state.best_residual
        state, seen = self._epoch(system, state, allowed)
        # The residuals met on the way are older than the result; what the epoch gained is expected to repeat itself.
        expected = seen * min(1.0, seen / best) if best else seen
        if not seen <= allowed:
            state, expected = replace(state, alpha_NT=state.best_NT, step_scale=state.step_scale / 2), math.inf
        elif seen <= best:
            state = replace(state, best_NT=state.alpha_NT, best_residual=seen)
        last = state.steps >= self._epochs or state.step_scale < MIN_STEP_SCALE
        if expected > self._tolerance and not last:
            return state
        true = _true_residual(system, state.alpha_NT)
        if true <= self._tolerance:
            return replace(state, status="converged")
        return _give_up(system, state, true) if last else state

    def extras(self, state: EigenProState) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def certify(self, system: System, state: EigenProState) -> Evidence:
        """Recompute the residual."""
        return ridge_evidence(system, state.alpha_NT)

    def _epoch(self, system: System, state: EigenProState, allowed: float) -> tuple[EigenProState, float]:
        """Return the state after an epoch and the worst relative residual met on the way.

        An epoch ends early once that residual exceeds what is allowed.
        """
        operator = system.operator
        single = operator.dtype == torch.float32 and self._tolerance >= FLOAT32_TOLERANCE
        dtype = torch.float32 if single else torch.float64
        preconditioner = Preconditioner(
            state.subsample_S, state.directions_SQ.to(dtype), state.damping_Q.to(dtype).unsqueeze(1), system.ridge
        )
        alpha_NT, rhs_NT = state.alpha_NT.to(dtype, copy=True), system.rhs_NT.to(dtype)
        random, size, block = self._random(1 + state.steps), operator.size, operator.block_rows
        squares_T, batch_rows, seen = system.rhs_NT.new_zeros(rhs_NT.shape[1]), state.batch_rows, 0.0
        for index in random.permutation(-(-size // block)).tolist():
            start, stop = index * block, min((index + 1) * block, size)
            block_MN = operator.rows(start, stop).to(dtype)
            found_T, batch_rows = _descend(
                preconditioner, alpha_NT, rhs_NT, block_MN, start, batch_rows, state.step_scale, random
            )
            squares_T += found_T
            seen = float((squares_T.sqrt() / system.norms_T).max())
            if not seen <= allowed:
                break
        steps = state.steps + 1
        return replace(state, alpha_NT=alpha_NT.double(), steps=steps, batch_rows=batch_rows), seen

    def _random(self, stream: int) -> np.random.Generator:
        """Return the random numbers of the subsample (0) or of an epoch (1, 2, ...), whatever was drawn before."""
        return np.random.default_rng([self._seed, stream])


def _descend(
    preconditioner: Preconditioner,
    alpha_NT: torch.Tensor,
    rhs_NT: torch.Tensor,
    block_MN: torch.Tensor,
    start: int,
    batch_rows: int,
    step_scale: float,
    random: np.random.Generator,
) -> tuple[torch.Tensor, int]:
    """Update the coefficients in place by the rows of a block, in batches in random order.

    Returns:
        Squared residuals of the rows as they were met, (T,) float64, and the critical batch size they suggest.
    """
    ridge, subsample_S = preconditioner.ridge, preconditioner.subsample_S
    order_M = torch.from_numpy(random.permutation(len(block_MN)))
    squares_T = torch.zeros(rhs_NT.shape[1], dtype=torch.float64)
    tops = widths = 0.0
    for batch_B in order_M.chunk(-(-len(block_MN) // batch_rows)):
        at_B, rows_BN = start + batch_B, block_MN[batch_B]
        gradient_BT = rows_BN @ alpha_NT + ridge * alpha_NT[at_B] - rhs_NT[at_B]
        squares_T += gradient_BT.double().square().sum(dim=0)
        features_BQ = preconditioner.features(rows_BN)
        vector_B1 = torch.from_numpy(random.standard_normal((len(batch_B), 1))).to(alpha_NT.dtype)
        top, width = preconditioner.scale(rows_BN[:, at_B], features_BQ, vector_B1)
        tops, widths = tops + top, widths + width
        if top > 0:
            rate = step_scale * RELAXATION / top
            alpha_NT[at_B] -= rate * gradient_BT
            alpha_NT[subsample_S] += rate * preconditioner.correction(features_BQ, gradient_BT)
    return squares_T, _critical_batch(batch_rows, tops, widths, len(block_MN))


def _critical_batch(batch_rows: int, tops: float, widths: float, largest: int) -> int:
    """Return the m at which the top eigenvalue, width + (m - 1) slope, is twice the width that it has for m = 1.

    Smaller batches make no more progress per row, larger ones make less.
    """
    if not (tops > 0 and widths > 0):
        return batch_rows
    growth = (tops / widths - 1) / max(batch_rows - 1, 1)
    return min(largest, int(1 / growth) + 1) if growth * largest > 1 else largest


def _true_residual(system: System, alpha_NT: torch.Tensor) -> float:
    return float(system.relative(residual(system, alpha_NT)).max())


def _give_up(system: System, state: EigenProState, true: float) -> EigenProState:
    """Return the better one of the last and the best coefficients; zero if neither is better than zero."""
    best = _true_residual(system, state.best_NT)
    alpha_NT, true = (state.alpha_NT, true) if true <= best else (state.best_NT, best)
    status: Status = "diverged" if state.step_scale < MIN_STEP_SCALE else "budget"
    if not true < 1:
        alpha_NT, status = torch.zeros_like(system.rhs_NT), "diverged"
    return replace(state, alpha_NT=alpha_NT, status=status)
