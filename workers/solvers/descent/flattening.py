"""The EigenPro preconditioner: leading eigendirections, estimated on a subsample, are flattened to one level."""

from dataclasses import dataclass
from typing import final

import torch

POWER_ITERATIONS = 8

MIN_LEVEL = 0.01
"""Directions are flattened at most down to this share of the largest diagonal entry, divided by the batch rows."""


@final
@dataclass(frozen=True, slots=True)
class Preconditioner:
    """P = I - sum_i damping_i e_i e_i^T K_s for the kernel k of K, whose ridge is a nugget on the diagonal."""

    subsample_S: torch.Tensor
    """Positions of the Nystrom points."""
    directions_SQ: torch.Tensor
    """e_i: leading eigenvectors of their kernel matrix K_s."""
    damping_Q1: torch.Tensor
    """(1 - level / lambda_i) / sigma_i, for eigenvalues sigma_i of K_s and lambda_i = sigma_i / s + ridge / N."""
    ridge: float

    def features(self, rows_BN: torch.Tensor) -> torch.Tensor:
        """Return the (B, q) eigenfunctions at the samples of some rows of K."""
        return rows_BN[:, self.subsample_S] @ self.directions_SQ

    def correction(self, features_BQ: torch.Tensor, gradient_BT: torch.Tensor) -> torch.Tensor:
        """Return what a gradient step on a batch adds back to the (s, T) coefficients of the subsample."""
        return self.directions_SQ @ (self.damping_Q1 * (features_BQ.T @ gradient_BT))

    def scale(self, matrix_BB: torch.Tensor, features_BQ: torch.Tensor, vector_B1: torch.Tensor) -> tuple[float, float]:
        """Return the largest eigenvalue and the mean diagonal entry of a batch's preconditioned matrix.

        The eigenvalue is found by power iteration from a random vector, which never overestimates it. The diagonal is
        that of the preconditioned kernel itself: taking one minus the leverage for it would assume that k(x, x) = 1.
        """
        flattened_B = features_BQ.square() @ self.damping_Q1.squeeze(1)
        width = float((matrix_BB.diagonal() - flattened_B).mean()) + self.ridge
        top = 0.0
        for _ in range(POWER_ITERATIONS):
            vector_B1 = vector_B1 / torch.linalg.vector_norm(vector_B1)
            shrunk_B1 = features_BQ @ (self.damping_Q1 * (features_BQ.T @ vector_B1))
            vector_B1 = matrix_BB @ vector_B1 + self.ridge * vector_B1 - shrunk_B1
            top = float(torch.linalg.vector_norm(vector_B1))
            if not top > 0:
                break
        return top, width


def damping(
    eigenvalues_S: torch.Tensor, *, top: int, ridge: float, size: int, bound: float, batch_rows: int
) -> torch.Tensor:
    """Return the damping of the directions to flatten, (q,) with q at most ``top`` and below s.

    The level is the first eigenvalue that is not flattened, but not so low that batches of ``batch_rows`` would stay
    far from critical: a lower level slows the flattened directions down and gains nothing.

    Args:
        eigenvalues_S: Of K_s, descending.
        top: The most directions to flatten.
        ridge: The lambda of K + lambda I.
        size: N.
        bound: The largest diagonal entry of K + ridge I.
        batch_rows: The largest batch there can be.
    """
    num_points = len(eigenvalues_S)
    shares_S = eigenvalues_S.clamp(min=0) / num_points + ridge / size
    level = max(float(shares_S[min(top, num_points - 1)]), MIN_LEVEL * bound / batch_rows)
    num_top = int((shares_S[:top] > level).sum())
    return (1 - level / shares_S[:num_top]) / eigenvalues_S[:num_top]
