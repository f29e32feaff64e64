"""Positive random features of the Gaussian and of the softmax kernel."""

import math
from typing import final

import torch

from ntkpipe.configs.kernels.random_features import PositiveFeaturesConfig
from ntkpipe.workers.kernels.closed_form.samples import as_vectors
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.frequencies import DenseFrequencies


@final
class PositiveFeatures(AbstractRandomFeatures):
    """exp(w_j . x - c |x|^2) / sqrt(K), c = 1 for the Gaussian kernel and 1/2 for exp(<x, x'>), w_j standard normal.

    E exp(w . (x + x')) = exp(|x + x'|^2 / 2) makes both unbiased (Choromanski et al. 2021; couplings from Reid et al.
    2023). The exponent of a feature is at most |w_j|^2 / (4 c), so that features do not overflow in any usual
    dimension; those of long samples underflow to zero, as their kernel does.

    The frequencies, O(K D) numbers, are drawn at the first call and kept.
    """

    def __init__(self, config: PositiveFeaturesConfig) -> None:
        self.dim = config.dim
        self._config = config
        self._drawn: dict[int, DenseFrequencies] = {}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) features of (N, D) samples; further axes are flattened.

        Raises:
            ConfigError: The samples have no coordinates.
        """
        x_ND = as_vectors(x) / self._config.bandwidth
        width = x_ND.shape[1]
        if width not in self._drawn:
            coupling, seed = self._config.coupling, self._config.seed
            self._drawn = {width: DenseFrequencies(coupling, seed, 0, self.dim, width)}
        share = 1.0 if self._config.of == "gaussian" else 0.5
        frequencies = self._drawn[width].to(x.device)
        return positive_exponentials(frequencies(x_ND), x_ND, share) / math.sqrt(self.dim)


def positive_exponentials(projections_NM: torch.Tensor, x_ND: torch.Tensor, share: float) -> torch.Tensor:
    """Return exp(w . x - share |x|^2), (N, M)."""
    return (projections_NM - share * x_ND.square().sum(dim=1, keepdim=True)).exp()
