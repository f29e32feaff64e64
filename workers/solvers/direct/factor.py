"""A factor of a symmetric positive semidefinite matrix: triangular, or made of its eigenpairs."""

from dataclasses import dataclass
from typing import final

import torch


@final
@dataclass(frozen=True, slots=True)
class Factor:
    """A with A = L L^T, or A^+ = V diag(inverse) V^T; float64."""

    matrix_SS: torch.Tensor
    """L, or V."""
    inverse_S: torch.Tensor
    """Inverses of the eigenvalues, 0 for those that are taken as zero; empty for a triangular factor."""

    def solve(self, rhs_ST: torch.Tensor) -> torch.Tensor:
        """Return A^+ rhs; O(S^2 T)."""
        if not len(self.inverse_S):
            return torch.cholesky_solve(rhs_ST, self.matrix_SS)
        return self.from_rotated(self.matrix_SS.T @ rhs_ST)

    def from_rotated(self, rotated_ST: torch.Tensor) -> torch.Tensor:
        """Return A^+ rhs, given V^T rhs."""
        return self.matrix_SS @ (self.inverse_S.unsqueeze(1) * rotated_ST)

    def norms(self, vectors_ST: torch.Tensor) -> torch.Tensor:
        """Return the (T,) norms sqrt(v^T A v), over the directions that are kept."""
        rotated_ST = self.matrix_SS.T @ vectors_ST
        if len(self.inverse_S):
            rotated_ST *= self.inverse_S.where(self.inverse_S > 0, torch.inf).rsqrt().unsqueeze(1)
        norms_T: torch.Tensor = torch.linalg.vector_norm(rotated_ST, dim=0)
        return norms_T

    def inverse_norms(self, vectors_ST: torch.Tensor) -> torch.Tensor:
        """Return the (T,) norms sqrt(v^T A^+ v); of eigenpairs only."""
        norms_T: torch.Tensor = torch.linalg.vector_norm(
            self.inverse_S.sqrt().unsqueeze(1) * (self.matrix_SS.T @ vectors_ST), dim=0
        )
        return norms_T

    def kept_norms(self, vectors_ST: torch.Tensor) -> torch.Tensor:
        """Return the (T,) norms of the projections onto the directions that are kept; of eigenpairs only."""
        norms_T: torch.Tensor = torch.linalg.vector_norm((self.matrix_SS.T @ vectors_ST)[self.inverse_S > 0], dim=0)
        return norms_T
