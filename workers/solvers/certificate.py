"""The evidence that a solution solves its system, recomputed from the operator."""

import math
from dataclasses import dataclass, field
from typing import final

import torch

from ntkpipe.workers.solvers.base import Evidence, SolverState
from ntkpipe.workers.solvers.system import System


@final
@dataclass(frozen=True, slots=True)
class Certificate:
    """What a solution rests on. Nothing in it is taken from a recurrence, estimates of eigenvalues aside."""

    equation: str
    """What the residuals are residuals of: ``ridge`` for (K + ridge I) alpha = y, ``least-squares`` for what features could
    still explain, ``centres`` for normal equations, ``filter`` for K alpha against the filtered targets, ``logistic`` for
    the gradient."""
    residuals: torch.Tensor
    """(T,) true relative residuals, accumulated in float64."""
    backward_errors: torch.Tensor
    """(T,) residual / (||K + ridge I|| ||alpha|| + ||y||): how far the nearest system is that alpha solves exactly. The
    norm is the solver's estimate, or else the largest diagonal entry, which only makes the error look larger. Empty for an
    equation that is not linear."""
    condition: float
    """Largest over smallest eigenvalue of K + ridge I, as the solver estimates them; NaN where it does not."""
    jitter: float
    """What was added to the diagonal beyond the ridge; 0.0 unless the matrix was not positive definite."""
    steps: int
    """Taken by the solver."""
    passes: float
    """How often the whole matrix has been read, this certificate included."""
    bytes_read: float
    """From storage."""
    flags: tuple[str, ...] = field(default=())
    """What a user should know: why the solver stopped unless it converged (``budget``, ``stagnated``, ``indefinite``,
    ``diverged``), ``jittered``, and ``ridge-below-precision``: the ridge is less than what rounding has done to the
    matrix, so that another precision would give other coefficients."""


def residual(system: System, alpha_NT: torch.Tensor) -> torch.Tensor:
    """Return y - (K + ridge I) alpha, (N, T) float64; one pass over the matrix, block by block."""
    alpha_NT = alpha_NT.double()
    return system.rhs_NT - system.operator.matmat(alpha_NT) - system.ridge * alpha_NT


def worst_residual(system: System, alpha_NT: torch.Tensor) -> float:
    """Return the largest true relative residual of a target; one pass over the matrix."""
    return float(system.relative(residual(system, alpha_NT)).max())


def no_worse_than_zero(system: System, alpha_NT: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return coefficients and their largest true relative residual; zero and its own if that is smaller."""
    zero = float(system.relative(system.rhs_NT).max())
    worst = worst_residual(system, alpha_NT) if alpha_NT.any() else zero
    return (alpha_NT, worst) if worst <= zero else (torch.zeros_like(alpha_NT), zero)


def ridge_evidence(system: System, alpha_NT: torch.Tensor) -> Evidence:
    """Return the evidence for (K + ridge I) alpha = y; one pass over the matrix, block by block.

    A recurrence for the residual drifts from the truth, so it is never used here.
    """
    alpha_NT = alpha_NT.double()
    fitted_NT = system.operator.matmat(alpha_NT)
    residual_NT = system.rhs_NT - fitted_NT - system.ridge * alpha_NT
    return Evidence(system.relative(residual_NT), fitted_NT)


def backward_errors(system: System, state: SolverState, evidence: Evidence, diagonal: float) -> torch.Tensor:
    """Return the (T,) normwise backward errors, see :class:`Certificate`, given the largest diagonal entry of K."""
    norm = _at_least(state.largest, diagonal + system.ridge)
    alpha_T: torch.Tensor = torch.linalg.vector_norm(state.alpha_NT.double(), dim=0)
    return evidence.residuals_T * system.norms_T / (norm * alpha_T + system.norms_T)


def flags(system: System, state: SolverState, diagonal: float) -> tuple[str, ...]:
    """Return what a user should know, see :class:`Certificate`, given the largest diagonal entry of K."""
    found = [] if state.status in (None, "converged", "stopped-early") else [state.status]
    if state.jitter:
        found.append("jittered")
    if system.ridge <= torch.finfo(system.operator.dtype).eps * _at_least(state.largest, diagonal):
        found.append("ridge-below-precision")
    return tuple(found)


def _at_least(estimate: float, diagonal: float) -> float:
    """Return an estimate of the largest eigenvalue, which no diagonal entry exceeds; NaN estimates say nothing."""
    return diagonal if math.isnan(estimate) else max(estimate, diagonal)
