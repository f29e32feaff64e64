"""The residual of a solution, recomputed from the operator."""

import torch

from ntkpipe.workers.operators.base import AbstractOperator


def residual(operator: AbstractOperator, ridge: float, alpha_NT: torch.Tensor, rhs_NT: torch.Tensor) -> torch.Tensor:
    """Return y - (K + ridge I) alpha, (N, T) float64; one pass over the matrix, block by block."""
    alpha = alpha_NT.double()
    return rhs_NT.double() - operator.matmat(alpha) - ridge * alpha


def relative_norms(residual_NT: torch.Tensor, rhs_NT: torch.Tensor) -> torch.Tensor:
    """Return ||residual|| / ||y|| per target, (T,) float64; the norm of the residual itself where y is zero."""
    norms_T: torch.Tensor = torch.linalg.vector_norm(rhs_NT.double(), dim=0)
    residual_T: torch.Tensor = torch.linalg.vector_norm(residual_NT, dim=0)
    return residual_T / torch.where(norms_T > 0, norms_T, 1.0)


def relative_residuals(
    operator: AbstractOperator, ridge: float, alpha_NT: torch.Tensor, rhs_NT: torch.Tensor
) -> torch.Tensor:
    """Return ||(K + ridge I) alpha - y|| / ||y|| per target, (T,), accumulated in float64; one pass over the matrix.

    A recurrence for the residual drifts from the truth, so it is never used here.
    """
    return relative_norms(residual(operator, ridge, alpha_NT, rhs_NT), rhs_NT)
