"""The random-features seam: a map of samples whose inner products estimate a kernel."""

from abc import ABC, abstractmethod

import torch


class AbstractRandomFeatures(ABC):
    """A fixed random map of single samples, drawn from a seed.

    Every random bit is a function of (kind, version, seed, position) through a counter-based generator, so that all
    workers draw the same map. Features are computed in float64, where the samples are.

    Attributes:
        dim: K, the number of features.
        num_negative: How many features, the last ones, enter inner products with a minus sign: estimates of kernels that
            are not positive, or whose estimator is not. 0 for a plain Gram matrix.
    """

    dim: int
    num_negative: int = 0

    @abstractmethod
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) features of samples, in float64.

        Args:
            x: (N, ...) samples of any real type, on any device; integers are taken as numbers, or as indices where samples
                are that.

        Raises:
            ConfigError: The samples do not have the shape that the map is defined for, or are not finite.
        """


def signed_gram(features_NK: torch.Tensor, others_MK: torch.Tensor, num_negative: int) -> torch.Tensor:
    """Return the (N, M) inner products in which the last ``num_negative`` features count negatively."""
    num_positive = features_NK.shape[1] - num_negative
    gram_NM = features_NK[:, :num_positive] @ others_MK[:, :num_positive].T
    if num_negative:
        gram_NM -= features_NK[:, num_positive:] @ others_MK[:, num_positive:].T
    return gram_NM
