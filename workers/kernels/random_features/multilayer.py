"""Random features of several layers of random ReLU units."""

import math
from typing import final

import torch

from ntkpipe.configs.kernels.random_features import MultilayerFeaturesConfig
from ntkpipe.workers.kernels.closed_form.samples import as_vectors
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.streams import Stream


@final
class MultilayerFeatures(AbstractRandomFeatures):
    """phi_(l+1) = sqrt(2 / m) relu(W phi_l) for L layers, phi_0 = x, and W standard normal.

    The limit of wide layers is |x| |x'| kappa_1(...kappa_1(cos)). With one layer, estimates are unbiased, with variance
    |x|^2 |x'|^2 (2 J / pi - kappa_1^2) / m, J = 3 sin t cos t + (pi - t)(1 + 2 cos^2 t) at the angle t (the arc-cosine
    kernel of degree two, Cho, Saul 2009). With more, kappa_1 acts on estimates and a bias of O(1 / width) remains off
    the diagonal, a factor O(m^(-1/2)) below the error of one draw: for two layers and unit vectors at obtuse angles
    about -0.45 / width was measured, less at acute ones.

    The weights, O(K D + K^2 L) numbers where all layers are of width K, are drawn at the first call and kept.
    """

    def __init__(self, config: MultilayerFeaturesConfig) -> None:
        self.dim = config.dim
        self._config = config
        self._drawn: dict[tuple[int, torch.device], list[torch.Tensor]] = {}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) features of (N, D) samples; further axes are flattened.

        Raises:
            ConfigError: The samples have no coordinates.
        """
        features_NW = as_vectors(x)
        for weights_MW in self._weights(features_NW.shape[1], x.device):
            features_NW = (features_NW @ weights_MW.T).clamp_min(0) * math.sqrt(2 / len(weights_MW))
        return features_NW

    def _weights(self, width: int, device: torch.device) -> list[torch.Tensor]:
        key = (width, device)
        if key not in self._drawn:
            hidden = self._config.width or self.dim
            widths = [width, *[hidden] * (self._config.depth - 1), self.dim]
            self._drawn = {
                key: [
                    Stream(self._config.seed, ("layer", layer)).normals(widths[layer + 1], widths[layer]).to(device)
                    for layer in range(self._config.depth)
                ]
            }
        return self._drawn[key]
