"""What logistic regression on a kernel minimises, in the geometry of its penalty."""

from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.glm.losses import AbstractLoss


@final
@dataclass(frozen=True, slots=True)
class Objective:
    """sum_i w_i loss(y_i, f_i) + ridge / 2 tr(A^T M A) for logits f = K A.

    M = K measures functions, M = I coefficients. Gradients, and products with the second derivative, are those with
    respect to the inner product of M; that of functions needs one product with K less, and a matrix K + ridge I in place
    of K^2 + ridge I. Sums over samples come as (T,), or (1,) where the loss couples columns.
    """

    operator: AbstractOperator
    """K."""
    targets_NT: torch.Tensor
    """y, float64."""
    weights_N1: torch.Tensor
    """w, float64."""
    ridge: float
    """Positive."""
    loss: AbstractLoss
    """Of logits."""
    functions: bool
    """Whether M is K."""
    precision: torch.dtype
    """Of the products with K that only a direction depends on."""

    def sums(self, values_NT: torch.Tensor) -> torch.Tensor:
        """Return sums over samples, and over columns that are coupled."""
        sums_T = values_NT.sum(dim=0)
        return sums_T.sum(dim=0, keepdim=True) if self.loss.coupled else sums_T

    def quick_product(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Return K V in float64, computed in the precision of directions."""
        return self.operator.matmat(vectors_NT.to(self.precision)).double()

    def metric(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Return M V."""
        return self.operator.matmat(vectors_NT) if self.functions else vectors_NT

    def quick_metric(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Return M V in the precision of directions."""
        return self.quick_product(vectors_NT) if self.functions else vectors_NT

    def errors(self, logits_NT: torch.Tensor) -> torch.Tensor:
        """Return the weighted derivatives of the losses by the logits."""
        return self.weights_N1 * (self.loss.probabilities(logits_NT) - self.targets_NT)

    def value(self, alpha_NT: torch.Tensor, logits_NT: torch.Tensor) -> torch.Tensor:
        """Return the objective of every problem."""
        norms_NT = alpha_NT * (logits_NT if self.functions else alpha_NT)
        losses = self.sums(self.weights_N1 * self.loss.values(logits_NT, self.targets_NT))
        return losses + self.ridge / 2 * self.sums(norms_NT)

    def gradient(self, alpha_NT: torch.Tensor, logits_NT: torch.Tensor) -> torch.Tensor:
        """Return the coefficients of the gradient."""
        errors_NT = self.errors(logits_NT)
        return (errors_NT if self.functions else self.operator.matmat(errors_NT)) + self.ridge * alpha_NT

    def curvature(
        self, probabilities_NT: torch.Tensor, vectors_NT: torch.Tensor, images_NT: torch.Tensor
    ) -> torch.Tensor:
        """Return the second derivative times V, given M V."""
        logits_NT = images_NT if self.functions else self.quick_product(vectors_NT)
        bent_NT = self.weights_N1 * self.loss.curvature(probabilities_NT, logits_NT)
        return (bent_NT if self.functions else self.quick_product(bent_NT)) + self.ridge * vectors_NT
