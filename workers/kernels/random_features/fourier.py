"""Random Fourier features of stationary kernels."""

import math
from typing import final

import torch

from ntkpipe.configs.kernels.random_features import FourierFeaturesConfig
from ntkpipe.workers.kernels.closed_form.samples import as_vectors
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.frequencies import (
    AbstractFrequencies,
    CauchyFrequencies,
    StudentFrequencies,
    make_frequencies,
)


@final
class FourierFeatures(AbstractRandomFeatures):
    """[cos(w_j . x), sin(w_j . x)] / sqrt(K / 2), all cosines first (Rahimi, Recht 2007).

    A stationary kernel of value 1 at zero is the mean of cos(w . (x - x')) over its spectral density (Bochner): a
    normal one for the Gaussian kernel, a multivariate Student t of 2 nu degrees of freedom for a Matern kernel, of one
    for the Laplace kernel, and a product of Cauchy densities for the Laplace kernel in the l1 norm.

    The frequencies, O(K D) numbers when dense, are drawn at the first call and kept.
    """

    def __init__(self, config: FourierFeaturesConfig) -> None:
        self.dim = config.dim
        self._config = config
        self._drawn: dict[int, AbstractFrequencies] = {}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) features of (N, D) samples; further axes are flattened.

        Raises:
            ConfigError: The samples have no coordinates.
        """
        x_ND = as_vectors(x) / self._config.bandwidth
        width = x_ND.shape[1]
        if width not in self._drawn:
            self._drawn = {width: _draw(self._config, width)}
        frequencies = self._drawn[width].to(x.device)
        return fourier_pairs(frequencies(x_ND)) / math.sqrt(self.dim // 2)


def fourier_pairs(phases_NM: torch.Tensor) -> torch.Tensor:
    """Return cosines, then sines, (N, 2 M)."""
    return torch.cat((phases_NM.cos(), phases_NM.sin()), dim=1)


def _draw(config: FourierFeaturesConfig, width: int) -> AbstractFrequencies:
    """Return frequencies of the spectral density at bandwidth one."""
    num = config.dim // 2
    if config.norm == "l1":
        return CauchyFrequencies(config.seed, num, width)
    normal = make_frequencies(config.frequencies, config.seed, num, width, coupling=config.coupling)
    if config.of == "gaussian":
        return normal
    return StudentFrequencies(normal, config.seed, num, 1.0 if config.of == "laplace" else 2 * config.nu)
