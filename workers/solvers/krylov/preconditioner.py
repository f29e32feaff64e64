"""The damped low-rank preconditioner.

For K ~ U S U^T of rank r and the ridge l, P = U (S + l) U^T / (s_r + l) + (I - U U^T), as in Frangella, Tropp and Udell,
"Randomized Nystrom preconditioning" (SIAM J. Matrix Anal. Appl., 2023). What the sketch leaves has eigenvalues of about
s_r + l, so the sketched directions are brought to that level and no lower. P = U S U^T + l I would bring them to l: for
l far below s_r the two parts then differ by s_r / l, and nothing is gained.
"""

from dataclasses import dataclass
from typing import final

import torch

BLOCK_ROWS = 4096
"""Of an N x r factor, converted to float64 at a time."""

CUTOFF = {torch.float32: 1e-6, torch.float64: 1e-11}
"""Sketched eigenvalues below this share of the largest one are rounding errors."""

LEVEL = {torch.float32: 1e-6, torch.float64: 1e-12}
"""The strongest damping; a stronger one would be lost in the rounding of U, and P might not be positive definite."""


@final
@dataclass(frozen=True, slots=True)
class Preconditioner:
    """P^-1 for one ridge per column; a product costs O(N r) per column."""

    basis_NR: torch.Tensor
    """U, orthonormal, in the precision of the operator; 4 N r bytes in float32."""
    values_R: torch.Tensor
    """S, descending, float64."""

    def damping(self, ridges_C: torch.Tensor) -> torch.Tensor:
        """Return the (R, C) eigenvalues of P^-1 on the columns of U."""
        shifted_RC = self.values_R.unsqueeze(1) + ridges_C
        return (shifted_RC[-1] / shifted_RC).clamp(min=LEVEL[self.basis_NR.dtype])

    def solve(self, vectors_NC: torch.Tensor, ridges_C: torch.Tensor) -> torch.Tensor:
        """Return P^-1 times (N, C) vectors, float64, computed in the precision of U."""
        projected_RC = (self.basis_NR.T @ vectors_NC.to(self.basis_NR.dtype)).double()
        removed_RC = (1 - self.damping(ridges_C)) * projected_RC
        return vectors_NC - (self.basis_NR @ removed_RC.to(self.basis_NR.dtype)).double()


def orthonormal(factor_NR: torch.Tensor, shift: float) -> Preconditioner | None:
    """Return U and S with U S U^T + shift U U^T ~ F F^T; None if nothing is left.

    The factor is overwritten. Two Gram matrices in float64, O(N r^2), and no copy of the factor beyond a block of rows:
    the first gives eigenvectors, and the second makes up for what their rounding costs in orthogonality.
    """
    values_R, vectors_RR = torch.linalg.eigh(_gram(factor_NR))
    largest = float(values_R[-1])
    if not largest > 0:
        return None
    smallest = CUTOFF[factor_NR.dtype] * largest
    kept_R = values_R > smallest
    values_R, vectors_RR = values_R[kept_R].flip(0), vectors_RR[:, kept_R].flip(1)
    basis_NR = _multiplied(factor_NR, vectors_RR / values_R.sqrt())
    lower_RR, _ = torch.linalg.cholesky_ex(_gram(basis_NR))
    identity_RR = torch.eye(len(lower_RR), dtype=lower_RR.dtype)
    basis_NR = _multiplied(basis_NR, torch.linalg.solve_triangular(lower_RR, identity_RR, upper=False).T)
    return Preconditioner(basis_NR.contiguous(), (values_R - shift).clamp(min=smallest))


def solve_factor(factor_NR: torch.Tensor, lower_RR: torch.Tensor) -> None:
    """Replace F by F L^-T, in float64, a block of rows at a time."""
    for start in range(0, len(factor_NR), BLOCK_ROWS):
        block_MR = factor_NR[start : start + BLOCK_ROWS]
        solved_MR = torch.linalg.solve_triangular(lower_RR.T, block_MR.double(), upper=True, left=False)
        block_MR.copy_(solved_MR)


def _gram(factor_NR: torch.Tensor) -> torch.Tensor:
    """Return F^T F, float64."""
    gram_RR = torch.zeros(factor_NR.shape[1], factor_NR.shape[1], dtype=torch.float64)
    for block_MR in torch.split(factor_NR, BLOCK_ROWS):
        block_MR = block_MR.double()
        gram_RR.addmm_(block_MR.T, block_MR)
    return gram_RR


def _multiplied(factor_NR: torch.Tensor, matrix_RQ: torch.Tensor) -> torch.Tensor:
    """Return F M in the memory of F, which has at least as many columns."""
    num_columns = matrix_RQ.shape[1]
    for block_MR in torch.split(factor_NR, BLOCK_ROWS):
        block_MR[:, :num_columns] = (block_MR.double() @ matrix_RQ).to(factor_NR.dtype)
    return factor_NR[:, :num_columns]
