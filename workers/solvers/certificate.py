"""The residual of a solution, recomputed from the operator."""

import torch

from ntkpipe.workers.operators.base import AbstractOperator


def relative_residuals(
    operator: AbstractOperator, ridge: float, alpha_NT: torch.Tensor, rhs_NT: torch.Tensor
) -> torch.Tensor:
    """Return ||(K + ridge I) alpha - y|| / ||y|| per target, (T,), accumulated in float64; one pass over the matrix.

    A recurrence for the residual drifts from the truth, so it is never used here. The residual of a zero target is not
    divided by anything.
    """
    alpha, rhs = alpha_NT.double(), rhs_NT.double()
    residual_NT = operator.matmat(alpha) + ridge * alpha - rhs
    norms_T = rhs.norm(dim=0)
    relative_T: torch.Tensor = residual_NT.norm(dim=0) / torch.where(norms_T > 0, norms_T, 1.0)
    return relative_T
