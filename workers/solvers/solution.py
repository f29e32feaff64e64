"""What a solver returns."""

from dataclasses import dataclass, field
from typing import Literal

import torch

Status = Literal["converged", "budget", "stagnated", "indefinite", "diverged"]


@dataclass(frozen=True, slots=True)
class Solution:
    """Coefficients of (K + ridge I) alpha = y with the evidence that they solve it.

    A solver never claims what it did not check: ``residuals`` are recomputed from the operator at the end, in
    float64, not taken from a recurrence.
    """

    alpha: torch.Tensor
    """(N, T) coefficients, float64."""
    ridge: float
    """The lambda that was really used, without jitter."""
    jitter: float
    """What was added to the diagonal beyond the ridge; 0.0 unless the matrix was not positive definite."""
    residuals: torch.Tensor
    """(T,) true relative residuals ||(K + ridge I) alpha - y|| / ||y||, float64."""
    status: Status
    """Why the solver stopped."""
    method: str
    """The solver's name."""
    stats: dict[str, float] = field(default_factory=dict)
    """Iterations, passes over the matrix, seconds, and what else the solver measured."""

    @property
    def converged(self) -> bool:
        """Whether the residual test was met."""
        return self.status == "converged"

    def predict(self, kernel_MN: torch.Tensor) -> torch.Tensor:
        """Return (M, T) predictions from the kernel (M, N) between new samples and the training samples."""
        return kernel_MN.to(self.alpha.dtype) @ self.alpha
