"""What a solver returns."""

from dataclasses import dataclass, field

import torch

from ntkpipe.workers.solvers.base import Status
from ntkpipe.workers.solvers.certificate import Certificate


@dataclass(frozen=True, slots=True)
class Solution:
    """Coefficients with the evidence that they solve their system.

    A solver never claims what it did not check: residuals are recomputed from the operator at the end, in float64, not
    taken from a recurrence.
    """

    alpha: torch.Tensor
    """(N, T) coefficients, float64: predictions are K(x, samples) alpha."""
    fitted: torch.Tensor
    """(N, T) predictions on the samples themselves, K alpha, float64."""
    ridge: float
    """The lambda that was really used, without jitter."""
    status: Status
    """Why the solver stopped: ``converged``, ``budget``, ``stagnated``, ``indefinite``, ``diverged``, ``stopped-early``."""
    method: str
    """The solver's name."""
    certificate: Certificate
    """The evidence."""
    seconds: float = 0.0
    """Spent, set-up and certificate included."""
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    """What else the solver found, such as a ridge path; see the solver."""

    @property
    def converged(self) -> bool:
        """Whether the residual test was met."""
        return self.status == "converged"

    @property
    def residuals(self) -> torch.Tensor:
        """(T,) true relative residuals, float64; of (K + ridge I) alpha = y unless the certificate says otherwise."""
        return self.certificate.residuals

    @property
    def jitter(self) -> float:
        """What was added to the diagonal beyond the ridge."""
        return self.certificate.jitter

    @property
    def stats(self) -> dict[str, float]:
        """Steps, passes over the matrix, bytes read from storage, condition number and seconds."""
        certificate = self.certificate
        return {
            "steps": float(certificate.steps),
            "passes": certificate.passes,
            "bytes_read": certificate.bytes_read,
            "condition": certificate.condition,
            "seconds": self.seconds,
        }

    def predict(self, kernel_MN: torch.Tensor) -> torch.Tensor:
        """Return (M, T) predictions from the kernel (M, N) between new samples and the training samples."""
        return kernel_MN.to(self.alpha.dtype) @ self.alpha
