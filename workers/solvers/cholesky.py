"""Dense Cholesky factorisation in float64 with a jitter ladder."""

import math
from dataclasses import dataclass, replace
from typing import final

import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractSolver, SolverState
from ntkpipe.workers.solvers.certificate import relative_residuals
from ntkpipe.workers.solvers.solution import Status

FIRST_JITTER = 1e-5
"""As a share of the mean diagonal entry."""

TOLERANCE = 1e-6
"""A relative residual above this is refined, and after refinement reported as stagnated. A backward stable solution of
a system with condition number 1e10 just reaches it."""


@dataclass(frozen=True, slots=True)
class CholeskyState(SolverState):
    """A solver that is done in one step needs nothing else."""


@final
class CholeskySolver(AbstractSolver[CholeskyState]):
    """Factorises K + ridge I; O(N^3 / 3) FLOPs and 16 N^2 bytes.

    A matrix that is not positive definite is tried again with jitter from 1e-5 tr(K)/N, doubled at every failure. The
    jitter is part of the result, and the residual is that of the system without it.
    """

    method = "cholesky"

    def __init__(self, max_jitter_doublings: int = 15) -> None:
        self._max_jitter_doublings = max_jitter_doublings

    def init(self, operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float) -> CholeskyState:
        """Start from zero."""
        return CholeskyState(torch.zeros_like(rhs_NT), status=None, steps=0, passes=0.0, jitter=0.0)

    def step(
        self, operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float, state: CholeskyState
    ) -> CholeskyState:
        """Factorise, solve, and refine once where rounding left a residual."""
        factor_NN, jitter = self._factorise(operator.dense().double(), ridge)
        alpha_NT = torch.cholesky_solve(rhs_NT, factor_NN)
        residuals_T = relative_residuals(operator, ridge, alpha_NT, rhs_NT)
        passes = 2.0
        if float(residuals_T.max()) > TOLERANCE:
            residual_NT = rhs_NT - operator.matmat(alpha_NT) - ridge * alpha_NT
            refined_NT = alpha_NT + torch.cholesky_solve(residual_NT, factor_NN)
            refined_T = relative_residuals(operator, ridge, refined_NT, rhs_NT)
            better_T = refined_T < residuals_T
            alpha_NT, residuals_T = torch.where(better_T, refined_NT, alpha_NT), torch.minimum(refined_T, residuals_T)
            passes += 2
        done: Status = "indefinite" if jitter else "converged" if float(residuals_T.max()) <= TOLERANCE else "stagnated"
        return replace(state, alpha_NT=alpha_NT, status=done, steps=1, passes=passes, jitter=jitter)

    def _factorise(self, matrix_NN: torch.Tensor, ridge: float) -> tuple[torch.Tensor, float]:
        diagonal_N = matrix_NN.diagonal().clone()
        mean = float(diagonal_N.mean())
        ladder = [0.0, *(FIRST_JITTER * abs(mean) * 2**doubling for doubling in range(self._max_jitter_doublings + 1))]
        for jitter in ladder:
            matrix_NN.diagonal().copy_(diagonal_N + ridge + jitter)
            factor_NN, failed = torch.linalg.cholesky_ex(matrix_NN)
            if not int(failed) and math.isfinite(float(factor_NN.diagonal().min())):
                return factor_NN, jitter
        raise NumericalError(
            f"the kernel matrix is not positive definite, not even with {ladder[-1]:g} added to its diagonal (mean "
            f"diagonal entry {mean:g}, ridge {ridge:g}). Check that it is a kernel matrix, or raise the ridge."
        )
