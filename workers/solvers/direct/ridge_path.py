"""What is known of many ridges at once from one eigendecomposition.

With eigenvalues l of the Gram matrix, ridge regression keeps the share l / (l + ridge) of each direction. The degrees
of freedom are the sum of these shares, the leverage of a sample its part of that sum, and the error of a sample that
is left out is its residual divided by one minus its leverage (Golub, Heath, Wahba: "Generalized cross-validation as a
method for choosing a good ridge parameter", Technometrics 1979).
"""

from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.workers.operators.rectangle import AbstractRectangle
from ntkpipe.workers.solvers.direct.streaming import LONGEST_SUM, num_row_parts, row_blocks

SMALLEST_REST = 1e-14
"""One minus a leverage is at least this; rounding alone could make it zero or negative."""


@final
@dataclass(frozen=True, slots=True)
class RidgePath:
    """Figures for R ridges. Errors are shares of the targets' mean squares, so that targets of all units count alike."""

    ridges_R: torch.Tensor
    dof_R: torch.Tensor
    """Effective degrees of freedom, from 0 to min(N, K)."""
    train_RT: torch.Tensor
    """Mean squared errors on the samples."""
    loo_RT: torch.Tensor
    """Mean squared leave-one-out errors; NaN where they were not asked for."""
    num_samples: int

    @property
    def gcv_RT(self) -> torch.Tensor:
        """Generalised cross-validation: mean squared error / (1 - dof / N)^2."""
        rest_R1 = (1 - self.dof_R / self.num_samples).clamp_min(SMALLEST_REST).unsqueeze(1)
        return self.train_RT / rest_R1.square()

    def selected(self, criterion: str) -> int:
        """Return which ridge has the smallest mean error over targets, the largest one of those that tie."""
        errors_R = (self.loo_RT if criterion == "loo" else self.gcv_RT).mean(dim=1)
        ties_R = errors_R == errors_R.min()
        return int(self.ridges_R.where(ties_R, -1.0).argmax())


def shares(values_S: torch.Tensor, ridges_R: torch.Tensor) -> torch.Tensor:
    """Return 1 / (l + ridge), (S, R)."""
    return (values_S.unsqueeze(1) + ridges_R).reciprocal()


def degrees_of_freedom(values_S: torch.Tensor, ridges_R: torch.Tensor) -> torch.Tensor:
    """Return the (R,) sums of l / (l + ridge)."""
    return (values_S.unsqueeze(1) * shares(values_S, ridges_R)).sum(dim=0)


def primal_path(
    values_K: torch.Tensor,
    projected_KT: torch.Tensor,
    rhs_NT: torch.Tensor,
    norms_T: torch.Tensor,
    ridges_R: torch.Tensor,
) -> RidgePath:
    """Return the path from eigenpairs of Phi^T Phi alone: O(K R T).

    Args:
        values_K: Eigenvalues, at least 0.
        projected_KT: V^T Phi^T y.
        rhs_NT: y.
        norms_T: What errors are relative to.
        ridges_R: Above 0.

    The squared error is the difference ||y||^2 - sum c^2 (l + 2 ridge) / (l + ridge)^2 with c = V^T Phi^T y, so that
    errors below the rounding of the Gram matrix are lost; a leave-one-out pass replaces it.
    """
    inverse_KR = shares(values_K, ridges_R)
    explained_KR = (values_K.unsqueeze(1) + 2 * ridges_R) * inverse_KR.square()
    relative_KT = (projected_KT / norms_T).square()
    train_RT = ((rhs_NT / norms_T).square().sum(dim=0) - explained_KR.T @ relative_KT).clamp_min(0.0)
    dof_R = degrees_of_freedom(values_K, ridges_R)
    return RidgePath(ridges_R, dof_R, train_RT, torch.full_like(train_RT, torch.nan), len(rhs_NT))


def dual_path(
    values_N: torch.Tensor,
    vectors_NN: torch.Tensor,
    rhs_NT: torch.Tensor,
    norms_T: torch.Tensor,
    ridges_R: torch.Tensor,
) -> tuple[RidgePath, torch.Tensor]:
    """Return the path from eigenpairs of Phi Phi^T, and the (N, R) leverages; O(N^2 R T), no pass.

    The error of a sample that is left out is alpha_i / [(K + ridge I)^-1]_ii.
    """
    inverse_NR = shares(values_N, ridges_R)
    relative_NT = vectors_NN.T @ (rhs_NT / norms_T)
    rest_NR = vectors_NN.square() @ inverse_NR
    train_RT, loo_RT = (rhs_NT.new_empty(len(ridges_R), rhs_NT.shape[1]) for _ in range(2))
    for at, ridge in enumerate(ridges_R):
        alpha_NT = vectors_NN @ (inverse_NR[:, at : at + 1] * relative_NT)
        train_RT[at] = (ridge * alpha_NT).square().sum(dim=0)
        loo_RT[at] = (alpha_NT / rest_NR[:, at : at + 1]).square().sum(dim=0)
    dof_R = degrees_of_freedom(values_N, ridges_R)
    return RidgePath(ridges_R, dof_R, train_RT, loo_RT, len(values_N)), 1 - ridges_R * rest_NR


def leave_one_out_part(
    features: AbstractRectangle,
    part: int,
    vectors_KK: torch.Tensor,
    values_K: torch.Tensor,
    projected_KT: torch.Tensor,
    rhs_NT: torch.Tensor,
    norms_T: torch.Tensor,
    ridges_R: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return a summand of squared errors and leverages for all ridges, flat and float64: R T + R T + N R numbers.

    They are squared errors, squared leave-one-out errors, both relative to the targets' squared norms, and leverages,
    which are zero for samples of other parts. 2 N K (K + R + R T) FLOPs over all parts: one product with the
    eigenvectors serves every ridge.
    """
    num_ridges, num_targets, size = len(ridges_R), rhs_NT.shape[1], len(rhs_NT)
    inverse_KR = shares(values_K, ridges_R)
    weights = (inverse_KR.unsqueeze(2) * (projected_KT / norms_T).unsqueeze(1)).flatten(1).to(dtype)
    rotation_KK, inverse_KR = vectors_KK.to(dtype), inverse_KR.to(dtype)
    total = torch.zeros(2 * num_ridges * num_targets + size * num_ridges, dtype=torch.float64)
    errors_RT, loo_RT, leverages_NR = split_leave_one_out(total, num_ridges, num_targets)
    for span, rows_MK in row_blocks(features, part, num_row_parts(features), longest=LONGEST_SUM):
        rotated_MK = rows_MK.to(dtype) @ rotation_KK
        fitted = (rotated_MK @ weights).double().view(-1, num_ridges, num_targets)
        squares = ((rhs_NT[span] / norms_T).unsqueeze(1) - fitted).square_()
        leverages_MR = (rotated_MK.square_() @ inverse_KR).double()
        errors_RT += squares.sum(dim=0)
        loo_RT += (squares / (1 - leverages_MR).clamp_min_(SMALLEST_REST).square_().unsqueeze(2)).sum(dim=0)
        leverages_NR[span] = leverages_MR
    return total


def split_leave_one_out(
    total: torch.Tensor, num_ridges: int, num_targets: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the (R, T) squared errors, the (R, T) squared leave-one-out errors and the (N, R) leverages, as views."""
    width = num_ridges * num_targets
    return (
        total[:width].view(num_ridges, num_targets),
        total[width : 2 * width].view(num_ridges, num_targets),
        total[2 * width :].view(-1, num_ridges),
    )
