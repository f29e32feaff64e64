"""The dual seam: what a layer of infinitely many units makes of the covariance of its inputs."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerMoments:
    """What a layer knows of each of S samples before pairs are formed."""

    value_S: torch.Tensor
    """E[s(u)^2] for u ~ N(0, variance)."""
    slope_S: torch.Tensor | None
    """E[s'(u)^2]; None if slopes were not asked for."""
    features_FS: torch.Tensor
    """What the activation needs of each sample: the variance, or coefficients of a series."""
    orders: tuple[tuple[int, ...], ...] = ()
    """Of series: the powers of the correlation to which coefficients belong, for s, and for s' below."""

    def part(self, samples: slice) -> "LayerMoments":
        """Return the same of some samples."""
        slope_S = None if self.slope_S is None else self.slope_S[samples]
        return LayerMoments(self.value_S[samples], slope_S, self.features_FS[:, samples], self.orders)


@dataclass(frozen=True, slots=True)
class PairMoments:
    """What a layer makes of pairs of samples, R rows and C columns."""

    value_RC: torch.Tensor
    """D = E[s(u) s(v)]."""
    gap_RC: torch.Tensor
    """sqrt(E[s(u)^2] E[s(v)^2]) - D >= 0, without the cancellation of this difference where that matters."""
    slope_RC: torch.Tensor | None
    """D' = E[s'(u) s'(v)]; None if slopes were not asked for."""


class AbstractDual(ABC):
    """The expectations of an activation s over pairs of normal variables (Daniely, Frostig, Singer, 2016).

    A pair is given by its two variances a and c and by the angle t, so that its covariance is sqrt(a c) cos t. The angle
    is exact near 0 and pi, where the cosine has lost what square roots in the formulas would need.
    """

    @abstractmethod
    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return what pairs of samples will need, O(S).

        Args:
            variances_S: Of the inputs of the layer, >= 0. Rows and columns of a block are prepared together.
            slopes: Whether D' will be needed.

        Raises:
            ConfigError: The expectations cannot be computed as accurately as was asked for.
        """

    @abstractmethod
    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Return the expectations of all pairs; at most a dozen temporaries of the size of the angles."""


def pair_moments(
    value_RC: torch.Tensor, slope_RC: torch.Tensor | None, rows: LayerMoments, columns: LayerMoments
) -> PairMoments:
    """Return the moments of pairs for an activation that is smooth, where a small error of the gap does no harm."""
    largest_RC = rows.value_S.sqrt().unsqueeze(1) * columns.value_S.sqrt()
    return PairMoments(value_RC, largest_RC.sub_(value_RC).clamp_(min=0), slope_RC)
