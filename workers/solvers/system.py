"""What a solver is asked: an operator, right-hand sides, and a ridge."""

from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.workers.operators.base import AbstractOperator

FLOAT32_TOLERANCE = 1e-5
"""Tighter tolerances than this are out of reach of float32 products."""


@final
@dataclass(frozen=True, slots=True)
class System:
    """(K + ridge I) alpha = y for several right-hand sides at once."""

    operator: AbstractOperator
    """K."""
    rhs_NT: torch.Tensor
    """y, float64, with entries of at most about one; smaller where a warm start left little to do."""
    ridge: float
    """At least 0, in the units of K."""
    norms_T: torch.Tensor
    """What residuals are relative to: the norms of y, or of what y was before a warm start; 1 where that is zero."""
    weights_N: torch.Tensor | None = None
    """Of the samples' losses, at least 0, float64; only for a solver that is not linear. None weighs all alike."""
    start_NT: torch.Tensor | None = None
    """Coefficients to start from, float64; only for a solver that is not linear. None starts from zero."""

    @property
    def size(self) -> int:
        """N."""
        return self.operator.size

    @property
    def corrects(self) -> bool:
        """Whether y is what a warm start has left of other targets."""
        norms_T: torch.Tensor = torch.linalg.vector_norm(self.rhs_NT, dim=0)
        return not torch.allclose(norms_T.where(norms_T > 0, 1.0), self.norms_T, rtol=1e-12, atol=0.0)

    def precision(self, tolerance: float) -> torch.dtype:
        """Return in which precision products are good enough for steps towards a tolerance."""
        single = self.operator.dtype == torch.float32 and tolerance >= FLOAT32_TOLERANCE
        return torch.float32 if single else torch.float64

    def relative(self, residual_NT: torch.Tensor) -> torch.Tensor:
        """Return the (T,) norms of a residual, relative, float64."""
        norms_T: torch.Tensor = torch.linalg.vector_norm(residual_NT.double(), dim=0)
        return norms_T / self.norms_T


def make_system(
    operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float, *, norms_T: torch.Tensor | None = None
) -> System:
    """Return a system whose residuals are relative to the norms of y unless others are given."""
    rhs_NT = rhs_NT.double()
    found_T: torch.Tensor = torch.linalg.vector_norm(rhs_NT, dim=0) if norms_T is None else norms_T
    return System(operator, rhs_NT, ridge, found_T.where(found_T > 0, 1.0))
