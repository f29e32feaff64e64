"""Cholesky factors of the centres' kernel matrix."""

from dataclasses import dataclass
from typing import final

import torch

MIN_PIVOT = 1e-11
"""Of a factor, squared, as a share of the largest diagonal entry: below it solves enlarge rounding errors too much."""

JITTER_GROWTH = 10.0

MAX_JITTER = 1e-6
"""As a share of the trace: a more negative eigenvalue than this is no rounding error."""


def jitter_ladder(matrix_PP: torch.Tensor, dtype: torch.dtype) -> list[float]:
    """Return what to add to the diagonal of a matrix until it has a factor: nothing, then what rounding may have done.

    Args:
        matrix_PP: The matrix, float64.
        dtype: The precision its entries were rounded to.
    """
    trace = float(matrix_PP.diagonal().sum())
    ladder, jitter = [0.0], max(torch.finfo(dtype).eps, 2 * MIN_PIVOT) * trace / len(matrix_PP)
    while 0 < jitter <= MAX_JITTER * trace:
        ladder.append(jitter)
        jitter *= JITTER_GROWTH
    return ladder


def cholesky(matrix_PP: torch.Tensor, jitter: float) -> torch.Tensor | None:
    """Return the lower factor of a matrix plus jitter I; None if a pivot is lost in rounding, or nearly."""
    shifted_PP = matrix_PP.clone()
    shifted_PP.diagonal().add_(jitter)
    factor_PP, failed = torch.linalg.cholesky_ex(shifted_PP)
    pivots_P = factor_PP.diagonal().square()
    if int(failed) or not float(pivots_P.min()) > MIN_PIVOT * float(shifted_PP.diagonal().max()):
        return None
    lower_PP: torch.Tensor = factor_PP.contiguous()
    return lower_PP


@final
@dataclass(frozen=True, slots=True)
class NormalFactors:
    """A P x P preconditioner M = L A A^T L^T of K_PN K_NP + ridge K_PP, both factors in one matrix.

    K_PP = L L^T, and (N / P) L^T L + ridge I = A A^T, as if the samples were the centres, each N / P times. Rudi,
    Carratino, Rosasco: "FALKON: An optimal large scale kernel method" (NeurIPS 2017).
    """

    packed_PP: torch.Tensor
    """L with its diagonal, and above it the transpose of A divided by the diagonal of A."""
    scales_P: torch.Tensor
    """The diagonal of A."""

    def solve(self, residual_PT: torch.Tensor) -> torch.Tensor:
        """Return M^-1 r; O(P^2 T)."""
        solve, packed_PP, scales_P1 = torch.linalg.solve_triangular, self.packed_PP, self.scales_P.unsqueeze(1)
        inner_PT = solve(packed_PP, residual_PT, upper=False)
        inner_PT = solve(packed_PP.T, inner_PT, upper=False, unitriangular=True) / scales_P1
        inner_PT = solve(packed_PP, inner_PT / scales_P1, upper=True, unitriangular=True)
        # What is stored between steps is contiguous, and the order of numbers in memory decides the bits of sums.
        outer_PT: torch.Tensor = solve(packed_PP.T, inner_PT, upper=True).contiguous()
        return outer_PT


def normal_factors(
    matrix_PP: torch.Tensor, *, num_samples: int, ridge: float, dtype: torch.dtype
) -> tuple[NormalFactors | None, float]:
    """Return the factors and the jitter they needed; none if the matrix is indefinite beyond rounding.

    2 P^3 FLOPs, and 8 P^2 bytes that are kept of about four times as many.

    Args:
        matrix_PP: K_PP, float64.
        num_samples: N.
        ridge: The lambda.
        dtype: The precision that entries of K_PP were rounded to.
    """
    ladder = jitter_ladder(matrix_PP, dtype)
    for jitter in ladder:
        lower_PP = cholesky(matrix_PP, jitter)
        if lower_PP is None:
            continue
        gram_PP = lower_PP.T @ lower_PP
        gram_PP *= num_samples / len(matrix_PP)
        gram_PP.diagonal().add_(ridge)
        inner_PP = cholesky(gram_PP, 0.0)
        if inner_PP is not None:
            scales_P = inner_PP.diagonal().clone()
            lower_PP += (inner_PP / scales_P).tril(-1).T
            return NormalFactors(lower_PP.contiguous(), scales_P), jitter
    return None, ladder[-1]
