"""Momentum for descent on windows, without touching all coefficients after every batch.

Liu, Belkin: "Accelerating SGD with momentum for over-parameterized learning" (ICLR 2020), with the weights for
preconditioned kernel machines of AxlePro (AISTATS 2025). Where u are the coefficients that a batch meets, d their
velocity, p the preconditioned gradient and eta the step, a batch takes

    d <- gamma d - c p,    u <- u + d - eta p,    gamma = (t - 1) / (t + 1),    c = eta (1 / x - 1) / (t + 1)

with t = nu / x, nu = N / m + (m - 1) / m for m rows, x = sqrt(eta mu), and mu the smallest eigenvalue of K + ridge I.
These are the published weights where eta = 1 / L; written with eta they also hold for steps that are measured batch by
batch, halved or longer. x = 1 is descent without momentum.

p is zero outside of the batch's rows and the Nystrom points. Elsewhere d only shrinks and u only moves along the d that
there was before the window, so that a window needs two numbers for all other rows, and K_M d once: as many passes, but
products with twice as many columns.
"""

import math
from dataclasses import dataclass
from typing import final

import torch

PACE = 2.0
"""mu is taken to be this many times the estimate. Measured: overestimates cost less than underestimates, as few
eigenvalues are near the smallest one."""

WARM_UP_EPOCHS = 3.0
"""x is at least w / (w + e) in the e-th epoch, like in Nesterov's method for unknown mu: one cannot be slow before
having been fast. Measured: the first epochs are as good as without momentum, and a mu that is far too small does little
harm."""


@final
@dataclass(frozen=True, slots=True)
class Pace:
    """How much momentum batches have."""

    size: int
    """N."""
    convexity: float
    """An estimate of the smallest eigenvalue of K + ridge I; at least 0."""
    epochs: int
    """Since the velocity was zero."""

    def weights(self, rate: float, num_rows: int) -> tuple[float, float]:
        """Return gamma and c for a step of length ``rate`` on some rows."""
        slowest = WARM_UP_EPOCHS / (WARM_UP_EPOCHS + self.epochs)
        share = max(math.sqrt(min(1.0, PACE * rate * self.convexity)), slowest)
        time = (self.size / num_rows + (num_rows - 1) / num_rows) / share
        return (time - 1) / (time + 1), rate * (1 / share - 1) / (time + 1)


@final
class Motion:
    """The velocity while a window is descended on: what is kept of it, and changes at rows and along directions.

    Args:
        pace: How much momentum there is.
        fitted_MT: What the velocity adds to what is predicted at the rows, (K + ridge I)_M d.
        num_directions: Q.
    """

    def __init__(self, pace: Pace, fitted_MT: torch.Tensor, num_directions: int) -> None:
        self._pace = pace
        self._fitted_MT = fitted_MT
        self.kept = 1.0
        """What is left of the velocity before the first step."""
        self.travelled = 0.0
        """How many times that velocity was added to the coefficients."""
        self.changes_MT = torch.zeros_like(fitted_MT)
        """Added to the velocity at the rows."""
        self.back_QT = fitted_MT.new_zeros(num_directions, fitted_MT.shape[1])
        """Added to it along the directions."""

    def fitted(self, batch_B: torch.Tensor) -> torch.Tensor:
        """Return what the way along the former velocity adds to predictions at some rows."""
        return self.travelled * self._fitted_MT[batch_B]

    def push(self, rate: float, batch_B: torch.Tensor, gradient_BT: torch.Tensor, pull_QT: torch.Tensor) -> None:
        """Update the velocity, and go along the former one for one step; p is the gradient less what is held back."""
        gamma, push = self._pace.weights(rate, len(batch_B))
        self.kept *= gamma
        self.travelled += self.kept
        self.changes_MT.mul_(gamma)
        self.changes_MT[batch_B] -= push * gradient_BT
        self.back_QT.mul_(gamma).add_(pull_QT, alpha=push)
