"""Dense Cholesky factorisation with a jitter ladder, in float32 with float64 residuals where that suffices.

Refining the solution of a cheap factorisation by residuals of higher precision ends as accurate as an expensive one,
as long as the matrix is well conditioned for the cheap one (Wilkinson: "Rounding errors in algebraic processes", 1963).
"""

import math
from dataclasses import dataclass, replace
from typing import final

import torch

from ntkpipe.configs.solve.direct import CholeskySolve
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState, Status
from ntkpipe.workers.solvers.certificate import residual, ridge_evidence
from ntkpipe.workers.solvers.system import System

FIRST_JITTER = 1e-5
"""As a share of the mean diagonal entry."""

TOLERANCE = 1e-8
"""A relative residual above this is refined, and after refinement not reported as converged."""

ACCURATE = 1e-12
"""A relative residual up to which a float32 factor is refined, so that its coefficients are those of a float64 one."""

MAX_REFINEMENTS = 10

POWER_ITERATIONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CholeskyState(SolverState):
    """A solver that is done in one step needs nothing else."""


@final
class CholeskySolver(AbstractSolver[CholeskyState]):
    """Factorises K + ridge I; N^3 / 3 FLOPs and 16 N^2 bytes beside the operator.

    A float32 matrix is first factorised in float32, in half the time and 8 N^2 bytes, and refined to a residual of 1e-12
    or until it no longer halves, a pass over the matrix each time. Unless that ends below the tolerance it is factorised in float64
    as any other matrix.

    A matrix that is not positive definite is tried again with jitter from 1e-5 tr(K)/N, doubled at every failure. The
    jitter is part of the result, and the residual is that of the system without it: a solution that refinement brings
    below the tolerance is ``converged`` however it was found, another one is ``indefinite`` with jitter and
    ``stagnated`` without. If the longest jitter does not help either, the answer is zero, ``indefinite``, and reports
    that jitter.
    """

    method = "cholesky"
    equation = "ridge"
    state_type = CholeskyState

    def __init__(self, config: CholeskySolve) -> None:
        self._max_jitter_doublings = config.max_jitter_doublings
        self._mixed = config.precision == "auto"

    def init(self, system: System) -> CholeskyState:
        """Start from zero."""
        return CholeskyState(alpha_NT=torch.zeros_like(system.rhs_NT), status=None)

    def step(self, system: System, state: CholeskyState) -> CholeskyState:
        """Factorise, solve, and refine for as long as it halves what rounding or jitter left."""
        single = self._single(system, state) if self._mixed and system.operator.dtype == torch.float32 else None
        return single or self._double(system, state)

    def extras(self, state: CholeskyState) -> dict[str, torch.Tensor]:
        """Nothing: a factor is as large as the matrix."""
        return {}

    def certify(self, system: System, state: CholeskyState) -> Evidence:
        """Recompute the residual."""
        return ridge_evidence(system, state.alpha_NT)

    def _single(self, system: System, state: CholeskyState) -> CholeskyState | None:
        """Solve with a float32 factor; None if there is none, or if it is too coarse."""
        matrix_NN = system.operator.dense().to(torch.float32, copy=True)
        matrix_NN.diagonal().copy_(matrix_NN.diagonal().double() + system.ridge)
        factor_NN, failed = torch.linalg.cholesky_ex(matrix_NN)
        del matrix_NN
        if int(failed) or not torch.isfinite(factor_NN.diagonal()).all():
            return None
        alpha_NT, worst = _refined(system, factor_NN, until=ACCURATE)
        return _ended(state, alpha_NT, "converged", factor_NN, 0.0) if worst <= TOLERANCE else None

    def _double(self, system: System, state: CholeskyState) -> CholeskyState:
        """Solve with a float64 factor, and jitter if it takes some."""
        factor_NN, jitter = self._factorise(system.operator.dense().to(torch.float64, copy=True), system.ridge)
        if factor_NN is None:
            return replace(state, status="indefinite", steps=1, jitter=jitter)
        alpha_NT, worst = _refined(system, factor_NN, until=TOLERANCE)
        status: Status = "converged" if worst <= TOLERANCE else "indefinite" if jitter else "stagnated"
        return _ended(state, alpha_NT, status, factor_NN, jitter)

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


def _refined(system: System, factor_NN: torch.Tensor, *, until: float) -> tuple[torch.Tensor, float]:
    """Return coefficients and their largest true relative residual; a pass for each refinement, and one more."""
    alpha_NT = _solved(factor_NN, system.rhs_NT)
    residual_NT = residual(system, alpha_NT)
    worst, refinements = float(system.relative(residual_NT).max()), 0
    while worst > until and refinements < MAX_REFINEMENTS:
        refined_NT = alpha_NT + _solved(factor_NN, residual_NT)
        refined_residual_NT = residual(system, refined_NT)
        refined, refinements = float(system.relative(refined_residual_NT).max()), refinements + 1
        if not refined < worst:
            break
        alpha_NT, residual_NT, halved, worst = refined_NT, refined_residual_NT, refined <= worst / 2, refined
        if not halved:
            break
    return alpha_NT, worst


def _solved(factor_NN: torch.Tensor, rhs_NT: torch.Tensor) -> torch.Tensor:
    """Solve in the precision of the factor, every column in its own units."""
    largest_T = rhs_NT.abs().amax(dim=0)
    exponents_T = torch.frexp(largest_T).exponent
    solved_NT = _substituted(factor_NN, torch.ldexp(rhs_NT, -exponents_T).to(factor_NN.dtype))
    scaled_NT: torch.Tensor = torch.ldexp(solved_NT.double(), exponents_T)
    return scaled_NT


def _substituted(factor_NN: torch.Tensor, rhs_NT: torch.Tensor) -> torch.Tensor:
    """Return (L L^T)^-1 rhs; unlike torch.cholesky_solve, this does not copy the factor every time."""
    forward_NT = torch.linalg.solve_triangular(factor_NN, rhs_NT, upper=False)
    solved_NT: torch.Tensor = torch.linalg.solve_triangular(factor_NN.T, forward_NT, upper=True)
    return solved_NT


def _ended(
    state: CholeskyState, alpha_NT: torch.Tensor, status: Status, factor_NN: torch.Tensor, jitter: float
) -> CholeskyState:
    largest, smallest = extreme_eigenvalues(factor_NN)
    return replace(state, alpha_NT=alpha_NT, status=status, steps=1, jitter=jitter, largest=largest, smallest=smallest)


def extreme_eigenvalues(factor_NN: torch.Tensor) -> tuple[float, float]:
    """Return estimates of the largest and the smallest eigenvalue of L L^T by power iteration; O(N^2).

    The largest one is a lower bound, the smallest an upper bound. Vectors are measured in units of their largest entry,
    since the squares of what a large or a small matrix makes of a unit vector overflow or vanish.
    """
    _, forward_N1 = _normalised(torch.ones(len(factor_NN), 1, dtype=factor_NN.dtype))
    largest, inverse, backward_N1 = 0.0, 0.0, forward_N1
    for _ in range(POWER_ITERATIONS):
        largest, forward_N1 = _normalised(factor_NN @ (factor_NN.T @ forward_N1))
        inverse, backward_N1 = _normalised(_substituted(factor_NN, backward_N1))
    return largest, 1 / inverse if inverse > 0 else math.inf


def _normalised(vector_N1: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the norm of a vector, and the vector divided by it."""
    unit = float(vector_N1.abs().max())
    if not unit > 0:
        return 0.0, vector_N1
    vector_N1 = vector_N1 / unit
    norm = float(torch.linalg.vector_norm(vector_N1))
    return unit * norm, vector_N1 / norm
