"""Losses of logits, with their first two derivatives."""

from abc import ABC, abstractmethod
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError

ROUNDING = 1e-6
"""By how much probabilities of a sample may differ from a sum of 1."""


class AbstractLoss(ABC):
    """A convex loss of the (N, T) logits of samples.

    Attributes:
        coupled: Whether the logits of a sample act on each other; otherwise every column is a problem of its own.
    """

    coupled: bool

    @abstractmethod
    def check(self, targets_NT: torch.Tensor) -> None:
        """Refuse targets.

        Raises:
            ConfigError: They are no probabilities of the kind that the loss compares with.
        """

    @abstractmethod
    def probabilities(self, logits_NT: torch.Tensor) -> torch.Tensor:
        """Return the (N, T) probabilities that logits stand for."""

    @abstractmethod
    def values(self, logits_NT: torch.Tensor, targets_NT: torch.Tensor) -> torch.Tensor:
        """Return the losses: (N, T), or (N, 1) where columns are coupled."""

    @abstractmethod
    def curvature(self, probabilities_NT: torch.Tensor, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Return the product of the second derivative with (N, T) vectors; it does not depend on the targets."""


@final
class SoftmaxLoss(AbstractLoss):
    """Cross-entropy of classes that exclude each other: log sum_c exp(f_c) - sum_c y_c f_c."""

    coupled = True

    def check(self, targets_NT: torch.Tensor) -> None:
        """Refuse what is no distribution over at least two classes."""
        sums_N = targets_NT.sum(dim=1)
        valid = targets_NT.shape[1] > 1 and bool((targets_NT >= 0).all() and ((sums_N - 1).abs() <= ROUNDING).all())
        if not valid:
            raise ConfigError(
                "loss 'softmax' needs a column per class and targets of at least 0 that sum to 1 for every sample, such as "
                f"one_hot_targets(labels); found shape {tuple(targets_NT.shape)} with sums from {float(sums_N.min()):g} to "
                f"{float(sums_N.max()):g}. Columns that are classes of their own need loss='sigmoid'."
            )

    def probabilities(self, logits_NT: torch.Tensor) -> torch.Tensor:
        """Return the softmax."""
        return torch.softmax(logits_NT, dim=1)

    def values(self, logits_NT: torch.Tensor, targets_NT: torch.Tensor) -> torch.Tensor:
        """Return cross-entropies, (N, 1)."""
        return -(targets_NT * torch.log_softmax(logits_NT, dim=1)).sum(dim=1, keepdim=True)

    def curvature(self, probabilities_NT: torch.Tensor, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Multiply by diag(p) - p p^T."""
        weighted_NT = probabilities_NT * vectors_NT
        return weighted_NT - probabilities_NT * weighted_NT.sum(dim=1, keepdim=True)


@final
class SigmoidLoss(AbstractLoss):
    """Cross-entropy of yes and no in every column: log(1 + exp(f)) - y f."""

    coupled = False

    def check(self, targets_NT: torch.Tensor) -> None:
        """Refuse what is no probability."""
        if not bool(((targets_NT >= 0) & (targets_NT <= 1)).all()):
            raise ConfigError(
                f"loss 'sigmoid' needs targets from 0 for no to 1 for yes, found {float(targets_NT.min()):g} to "
                f"{float(targets_NT.max()):g}."
            )

    def probabilities(self, logits_NT: torch.Tensor) -> torch.Tensor:
        """Return the sigmoid."""
        return torch.sigmoid(logits_NT)

    def values(self, logits_NT: torch.Tensor, targets_NT: torch.Tensor) -> torch.Tensor:
        """Return cross-entropies, (N, T)."""
        return torch.nn.functional.softplus(logits_NT) - targets_NT * logits_NT

    def curvature(self, probabilities_NT: torch.Tensor, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Multiply by p (1 - p)."""
        return probabilities_NT * (1 - probabilities_NT) * vectors_NT


LOSSES: dict[str, AbstractLoss] = {"softmax": SoftmaxLoss(), "sigmoid": SigmoidLoss()}
"""By name."""
