"""Dense Cholesky factorisation in float64 with a jitter ladder."""

from dataclasses import dataclass, replace
from typing import final

import torch

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractSolver, SolverState
from ntkpipe.workers.solvers.certificate import relative_norms, residual
from ntkpipe.workers.solvers.solution import Status

FIRST_JITTER = 1e-5
"""As a share of the mean diagonal entry."""

TOLERANCE = 1e-8
"""A relative residual above this is refined, and after refinement not reported as converged."""

MAX_REFINEMENTS = 10


@dataclass(frozen=True, slots=True)
class CholeskyState(SolverState):
    """A solver that is done in one step needs nothing else."""


@final
class CholeskySolver(AbstractSolver[CholeskyState]):
    """Factorises K + ridge I; O(N^3 / 3) FLOPs and 16 N^2 bytes beside the operator.

    A matrix that is not positive definite is tried again with jitter from 1e-5 tr(K)/N, doubled at every failure. The
    jitter is part of the result, and the residual is that of the system without it: a solution that refinement brings
    below the tolerance is ``converged`` however it was found, another one is ``indefinite`` with jitter and
    ``stagnated`` without. If the longest jitter does not help either, the answer is zero, ``indefinite``, and reports
    that jitter.
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
        """Factorise, solve, and refine for as long as it halves what rounding or jitter left."""
        factor_NN, jitter = self._factorise(operator.dense().double(), ridge)
        if factor_NN is None:
            return replace(state, status="indefinite", steps=1, passes=1.0, jitter=jitter)
        alpha_NT = torch.cholesky_solve(rhs_NT, factor_NN)
        residual_NT = residual(operator, ridge, alpha_NT, rhs_NT)
        worst, passes = float(relative_norms(residual_NT, rhs_NT).max()), 2.0
        while worst > TOLERANCE and passes < 2 + MAX_REFINEMENTS:
            refined_NT = alpha_NT + torch.cholesky_solve(residual_NT, factor_NN)
            refined_residual_NT = residual(operator, ridge, refined_NT, rhs_NT)
            refined, passes = float(relative_norms(refined_residual_NT, rhs_NT).max()), passes + 1
            if not refined < worst:
                break
            alpha_NT, residual_NT, halved, worst = refined_NT, refined_residual_NT, refined <= worst / 2, refined
            if not halved:
                break
        status: Status = "converged" if worst <= TOLERANCE else "indefinite" if jitter else "stagnated"
        return replace(state, alpha_NT=alpha_NT, status=status, steps=1, passes=passes, jitter=jitter)

    def _factorise(self, matrix_NN: torch.Tensor, ridge: float) -> tuple[torch.Tensor | None, float]:
        """Return the factor and the jitter it needed; no factor if none of them suffices."""
        diagonal_N = matrix_NN.diagonal().clone()
        first = FIRST_JITTER * abs(float(diagonal_N.mean()))
        ladder = [0.0, *(first * 2**doubling for doubling in range(self._max_jitter_doublings + 1))]
        for jitter in ladder:
            matrix_NN.diagonal().copy_(diagonal_N + ridge + jitter)
            factor_NN, failed = torch.linalg.cholesky_ex(matrix_NN)
            if not int(failed) and torch.isfinite(factor_NN.diagonal()).all():
                return factor_NN, jitter
        return None, ladder[-1]
