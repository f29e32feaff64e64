"""Random features of kernels whose spectral density is a learnable mixture of normal ones."""

import math
from collections.abc import Callable
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import SpectralMixtureFeaturesConfig
from ntkpipe.workers.kernels.closed_form.samples import as_vectors
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.fourier import fourier_pairs
from ntkpipe.workers.kernels.random_features.frequencies import make_frequencies
from ntkpipe.workers.kernels.random_features.positive import positive_exponentials
from ntkpipe.workers.kernels.random_features.streams import CPU


@final
class SpectralMixture(torch.nn.Module):
    """The feature map as a module: weights, means and scales are parameters, the noise e behind them stays fixed.

    Frequencies of component c are mean_c + scale_c e with standard normal e, so that gradients reach the density
    through the frequencies (Chowdhury et al. 2022). Weights and scales are parametrised by their logarithms. Everything
    is in float64.
    """

    def __init__(self, config: SpectralMixtureFeaturesConfig) -> None:
        super().__init__()
        self._config = config
        self.log_weights_C = torch.nn.Parameter(torch.tensor(config.weights, dtype=torch.float64, device=CPU).log())
        self.means_CD = torch.nn.Parameter(torch.tensor(config.means, dtype=torch.float64, device=CPU))
        self.log_scales_CD = torch.nn.Parameter(torch.tensor(config.scales, dtype=torch.float64, device=CPU).log())
        num_components, width = self.means_CD.shape
        per_frequency = 2 if config.features == "fourier" else 1
        self._num = config.dim // num_components // per_frequency
        self._noise = torch.nn.ModuleList(
            make_frequencies(config.frequencies, config.seed, self._num, width, part=part)
            for part in range(num_components)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) features of (N, D) samples, differentiable with respect to parameters and samples.

        Raises:
            ConfigError: The samples do not have D coordinates.
        """
        x_ND, width = as_vectors(x), self.means_CD.shape[1]
        if x_ND.shape[1] != width:
            raise ConfigError(
                f"samples have {x_ND.shape[1]} coordinates, but means and scales have {width}; make them agree."
            )
        amplitudes_C = (self.log_weights_C / 2).exp() / math.sqrt(self._num)
        found = []
        for part, noise in enumerate(self._noise):
            shift_N1 = (x_ND @ self.means_CD[part]).unsqueeze(1)
            projections_NM = noise(x_ND * self.log_scales_CD[part].exp()) + shift_N1
            if self._config.features == "fourier":
                features = fourier_pairs(projections_NM)
            else:
                features = positive_exponentials(projections_NM, x_ND, 0.5)
            found.append(amplitudes_C[part] * features)
        return torch.cat(found, dim=1)

    def to_config(self) -> SpectralMixtureFeaturesConfig:
        """Return the section with the present weights, means and scales; its features are those of this module."""
        learned = {
            "weights": self.log_weights_C.exp().tolist(),
            "means": self.means_CD.tolist(),
            "scales": self.log_scales_CD.exp().tolist(),
        }
        return SpectralMixtureFeaturesConfig.model_validate(self._config.model_dump() | learned)


@final
class SpectralMixtureFeatures(AbstractRandomFeatures):
    """The features of a mixture that is given, not learned; see :class:`SpectralMixture`."""

    def __init__(self, config: SpectralMixtureFeaturesConfig) -> None:
        self.dim = config.dim
        self._mixture = SpectralMixture(config)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) features of (N, D) samples; further axes are flattened.

        Raises:
            ConfigError: The samples do not have as many coordinates as the means.
        """
        with torch.no_grad():
            features_NK: torch.Tensor = self._mixture.to(x.device)(x)
        return features_NK


def negative_log_likelihood(features_NK: torch.Tensor, targets_N: torch.Tensor, noise: float) -> torch.Tensor:
    """Return -log p(y) / N of y ~ N(0, F F^T + noise I): the evidence of a Gaussian process with the estimated kernel.

    O(N K^2 + K^3), or O(N^2 K + N^3) where there are fewer samples than features.

    Args:
        features_NK: F.
        targets_N: y.
        noise: The variance of the noise, positive.
    """
    num, dim = features_NK.shape
    identity = torch.eye(min(num, dim), dtype=features_NK.dtype, device=features_NK.device)
    if num <= dim:
        factor = torch.linalg.cholesky(features_NK @ features_NK.T + noise * identity)
        fit = torch.linalg.solve_triangular(factor, targets_N.unsqueeze(1), upper=False).square().sum()
    else:
        # Woodbury: y^T (F F^T + s I)^-1 y = (|y|^2 - |L^-1 F^T y|^2) / s with L L^T = F^T F + s I.
        factor = torch.linalg.cholesky(features_NK.T @ features_NK + noise * identity)
        explained = torch.linalg.solve_triangular(factor, (features_NK.T @ targets_N).unsqueeze(1), upper=False)
        fit = (targets_N.square().sum() - explained.square().sum()) / noise
    log_determinant = 2 * factor.diagonal().log().sum() + max(0, num - dim) * math.log(noise)
    loss: torch.Tensor = (fit + log_determinant + num * math.log(2 * math.pi)) / (2 * num)
    return loss


def relative_error(features_NK: torch.Tensor, kernel_NN: torch.Tensor) -> torch.Tensor:
    """Return |F F^T - K|^2 / |K|^2 in Frobenius norms: how far the estimate is from a kernel that is to be learned."""
    return (features_NK @ features_NK.T - kernel_NN).square().sum() / kernel_NN.square().sum()


def fit_mixture(
    mixture: SpectralMixture,
    x: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    *,
    steps: int = 200,
    learning_rate: float = 0.05,
) -> list[float]:
    """Learn the parameters of a mixture by Adam on all samples at once; deterministic.

    Args:
        mixture: Changed in place.
        x: (N, D) samples.
        loss: Takes the (N, K) features to a scalar, for example a partial :func:`negative_log_likelihood` of labels or
            :func:`relative_error` to a kernel.
        steps: Of gradient descent.
        learning_rate: Of Adam.

    Returns:
        The loss before every step, and after the last one.
    """
    optimizer = torch.optim.Adam(mixture.parameters(), lr=learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(mixture(x))
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    with torch.no_grad():
        losses.append(float(loss(mixture(x))))
    return losses
