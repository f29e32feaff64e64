"""The projection seam: a fixed random linear map from the gradients of all parameters to K features."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor, slice_width
from ntkpipe.workers.jacobians.rates import rates_of


class AbstractProjection(ABC):
    """A random map whose every entry is a function of (kind, version, seed, parameter name, row, column).

    The map of a kernel is one matrix on all (output vector, parameter) coordinates, so that summing the contributions of
    all parameters and output vectors estimates the trace kernel in K numbers.

    The first and the last K / 2 features are two independent sketches, each of which estimates the kernel alone: twice
    the inner product over a half. Their difference says how large the error of the estimate is.

    Attributes:
        dim: K, the number of features; even.
    """

    dim: int

    @abstractmethod
    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Return the (B, K) features of a batch, whose inner products are unbiased estimates.

        Args:
            factors: Gradients by parameter name; the name is part of the key of the random bits.
        """

    @abstractmethod
    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Return the predicted seconds of projecting a parameter's gradients, for every way to do it.

        The fastest one is taken; all give the same features up to rounding.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a short text that is equal for two maps exactly if they are the same map."""


def dense_ways(factor: AbstractFactor, dim: int) -> dict[str, float]:
    """Return the only way of a map that multiplies materialised gradients with a dense matrix."""
    rates, entries = rates_of(factor.like.device), float(factor.num_samples * factor.num_vectors * factor.numel)
    return {"gradients": rates.matmul(2 * entries * dim)}


Accumulate = Callable[[torch.Tensor, torch.Tensor, str, int], None]
"""(features (B, K), gradients (B, w), parameter, offset): adds the unscaled map of a run of stacked coordinates."""


def add_slices(factors: Mapping[str, AbstractFactor], dim: int, accumulate: Accumulate) -> torch.Tensor:
    """Return the unscaled (B, K) features of a map that is defined coordinate by coordinate."""
    any_factor = next(iter(factors.values()))
    features_BK = any_factor.like.new_zeros(any_factor.num_samples, dim)
    # Batches of similar size share a width, so that a map's cached slices serve all of them.
    width = slice_width(max(64, 1 << (any_factor.num_samples - 1).bit_length()))
    for name, factor in factors.items():
        first = factor.first_vector * factor.numel
        for offset, gradients_BW in factor.slices(width):
            accumulate(features_BK, gradients_BW, name, first + offset)
    return features_BK
