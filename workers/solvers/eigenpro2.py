"""EigenPro 2 with a nugget ridge: preconditioned stochastic gradient descent over stored rows.

Ma, Belkin: "Kernel machines that adapt to GPUs for effective large batch training" (MLSys 2019). The leading
eigendirections of the kernel, estimated on a subsample, are flattened, which raises the batch size up to which larger
batches converge faster. A ridge needs no other algorithm: K + ridge I is the matrix of the kernel with a nugget, whose
largest diagonal entry and eigenvalues are those of K plus the ridge.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractSolver, SolverState
from ntkpipe.workers.solvers.certificate import relative_residuals
from ntkpipe.workers.solvers.solution import Status

FLATTENING = 0.95
"""Exponent a of the eigenvalue map lambda_1 (lambda / lambda_1)^(1 - a): below 1 because the eigenpairs are estimates."""

FLOAT32_TOLERANCE = 1e-5
"""Tighter tolerances than this are out of reach of float32 products."""

DIVERGENCE = 10.0
"""An epoch whose residual exceeds the best one this many times is undone, and the step is halved."""

MIN_STEP_SCALE = 2.0**-10


@dataclass(frozen=True, slots=True)
class EigenProState(SolverState):
    """Coefficients, preconditioner and step size."""

    subsample_S: torch.Tensor
    """Positions of the Nystrom points."""
    directions_SQ: torch.Tensor
    """Leading eigenvectors of K_s / s, divided by sqrt(s)."""
    damping_Q: torch.Tensor
    """(1 - (lambda_q / lambda_i)^a) / lambda_i."""
    top_eigenvalue: float
    """Largest eigenvalue of the preconditioned (K + ridge I) / N."""
    bound: float
    """Largest diagonal entry of K + ridge I."""
    step_scale: float
    best_NT: torch.Tensor
    best_residual: float


@final
class EigenProSolver(AbstractSolver[EigenProState]):
    """One step is one epoch: every row once, in whole blocks of rows in random order.

    O(N^2 T) FLOPs per epoch, memory O(N T + s q + block of rows). Deterministic given the seed.
    """

    method = "eigenpro2"

    def __init__(
        self, *, epochs: int = 20, tolerance: float = 1e-4, subsample: int = 2000, top: int = 100, seed: int = 0
    ) -> None:
        self._epochs = epochs
        self._tolerance = tolerance
        self._subsample = subsample
        self._top = top
        self._seed = seed

    def init(self, operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float) -> EigenProState:
        """Draw the Nystrom points and take the eigenpairs of their kernel matrix: one pass, O(s^3)."""
        size = operator.size
        num_points = min(self._subsample, size)
        generator = torch.Generator().manual_seed(self._seed)
        subsample_S = torch.randperm(size, generator=generator)[:num_points].sort().values
        eigenvalues, vectors = torch.linalg.eigh(_submatrix(operator, subsample_S) / num_points)
        eigenvalues, vectors = eigenvalues.flip(0), vectors.flip(1)
        largest = max(float(eigenvalues[0]), torch.finfo(torch.float64).tiny)
        num_positive = int((eigenvalues > largest * torch.finfo(operator.dtype).eps).sum())
        num_top = max(0, min(self._top, num_points - 1, num_positive - 1))
        leading_Q, level = eigenvalues[:num_top], float(eigenvalues[num_top])
        damping_Q = (1 - (level / leading_Q) ** FLATTENING) / leading_Q
        top_eigenvalue = largest * (max(level, 0.0) / largest) ** FLATTENING if num_top else largest
        return EigenProState(
            alpha_NT=torch.zeros_like(rhs_NT),
            status=None,
            steps=0,
            passes=1.0,
            jitter=0.0,
            subsample_S=subsample_S,
            directions_SQ=vectors[:, :num_top] / math.sqrt(num_points),
            damping_Q=damping_Q,
            top_eigenvalue=top_eigenvalue + ridge / size,
            # The largest diagonal entry bounds the preconditioned kernel's for any kernel; one minus the leverage, which
            # some implementations use, does so for unit diagonals only.
            bound=float(operator.diagonal().double().max()) + ridge,
            step_scale=1.0,
            best_NT=torch.zeros_like(rhs_NT),
            best_residual=1.0,
        )

    def step(
        self, operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float, state: EigenProState
    ) -> EigenProState:
        """Run an epoch; check the true residual when the one seen on the way is small, and after the last epoch."""
        alpha_NT, seen_T = self._epoch(operator, rhs_NT, ridge, state)
        seen = float(seen_T.max())
        epochs, passes = state.steps + 1, state.passes + 1
        if not math.isfinite(seen) or seen > DIVERGENCE * max(state.best_residual, self._tolerance):
            scale = state.step_scale / 2
            failed: Status | None = (
                "diverged" if scale < MIN_STEP_SCALE else "budget" if epochs >= self._epochs else None
            )
            return replace(state, alpha_NT=state.best_NT, steps=epochs, passes=passes, step_scale=scale, status=failed)
        state = replace(state, alpha_NT=alpha_NT, steps=epochs, passes=passes)
        if seen <= state.best_residual:
            state = replace(state, best_NT=alpha_NT, best_residual=seen)
        if seen <= self._tolerance or epochs >= self._epochs:
            true = float(relative_residuals(operator, ridge, alpha_NT, rhs_NT).max())
            done: Status | None = (
                "converged" if true <= self._tolerance else "budget" if epochs >= self._epochs else None
            )
            state = replace(state, passes=passes + 1, status=done)
        return state

    def _epoch(
        self, operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float, state: EigenProState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return new coefficients and the relative residuals met on the way, (T,)."""
        single = operator.dtype == torch.float32 and self._tolerance >= FLOAT32_TOLERANCE
        dtype = torch.float32 if single else torch.float64
        alpha_NT, rhs = state.alpha_NT.to(dtype), rhs_NT.to(dtype)
        directions, damping = state.directions_SQ.to(dtype), state.damping_Q.to(dtype).unsqueeze(1)
        size, block = operator.size, operator.block_rows
        critical = max(1, int(state.bound / state.top_eigenvalue) + 1)
        squares_T = torch.zeros(rhs.shape[1], dtype=torch.float64)
        generator = torch.Generator().manual_seed(self._seed + 1 + state.steps)
        for index in torch.randperm(-(-size // block), generator=generator).tolist():
            start, stop = index * block, min((index + 1) * block, size)
            rows = operator.rows(start, stop).to(dtype)
            order = torch.randperm(stop - start, generator=generator)
            for batch in order.split(critical):
                at = start + batch
                rows_MN = rows[batch]
                gradient_MT = rows_MN @ alpha_NT + ridge * alpha_NT[at] - rhs[at]
                squares_T += gradient_MT.double().square().sum(dim=0)
                rate = state.step_scale * _step_size(len(batch), state.bound, state.top_eigenvalue)
                alpha_NT[at] -= rate * gradient_MT
                projected_QT = directions.T @ (rows_MN[:, state.subsample_S].T @ gradient_MT)
                alpha_NT[state.subsample_S] += rate * (directions @ (damping * projected_QT))
        norms_T = rhs_NT.norm(dim=0)
        return alpha_NT.double(), squares_T.sqrt() / torch.where(norms_T > 0, norms_T, 1.0)


def _step_size(num_rows: int, bound: float, top_eigenvalue: float) -> float:
    """Return the step per sample for a batch: constant up to the critical batch size, then falling as 1/m."""
    if num_rows < bound / top_eigenvalue + 1:
        return 1 / bound
    return 0.99 * 2 / (bound + (num_rows - 1) * top_eigenvalue)


def _submatrix(operator: AbstractOperator, positions_S: torch.Tensor) -> torch.Tensor:
    """Return the (s, s) float64 matrix of some positions, reading rows in their blocks."""
    block, parts = operator.block_rows, []
    for start in range(0, operator.size, block):
        stop = min(start + block, operator.size)
        inside = positions_S[(positions_S >= start) & (positions_S < stop)] - start
        if len(inside):
            parts.append(operator.rows(start, stop)[inside][:, positions_S].double())
    matrix_SS = torch.cat(parts)
    return (matrix_SS + matrix_SS.T) / 2
