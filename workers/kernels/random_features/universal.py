"""Random features of functions of an inner product."""

import math
from dataclasses import dataclass
from typing import Literal, final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import UniversalFeaturesConfig
from ntkpipe.workers.kernels.closed_form.samples import as_vectors
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.couplings import coupled_normals
from ntkpipe.workers.kernels.random_features.streams import CPU, Stream


@final
class UniversalFeatures(AbstractRandomFeatures):
    """Features of f(scale <x, x'> + offset) with f(t) = Re E[c(s) exp(i s t)] (Sehanobish et al. 2024).

    For a normal vector g and any complex a, phi(x) = exp(a g . x - a^2 |x|^2 / 2) has E[phi(x) phi(x')] =
    exp(a^2 <x, x'>); here a^2 = i s. A complex feature u = sqrt(c exp(i s offset) / m) phi becomes two real ones, of
    which the imaginary part enters inner products negatively: Re(u u') = Re u Re u' - Im u Im u'. ``exp`` needs no
    more than the real a = 1.

    With v = x + x' at scale one, E|u u'|^2 m^2 = E[|c|^2 exp(s |v|^2)] and E(u u')^2 m^2 = E[c^2 exp(i s (|x|^2 +
    |x'|^2 + 4 <x, x'> + 2 offset))], so that the variance of an entry is (half the real part of their sum
    - f^2) / m with m = K / 2, where both are finite: for all but ``erf``.

    The vectors g, O(K D) numbers, are drawn at the first call and kept.
    """

    def __init__(self, config: UniversalFeaturesConfig) -> None:
        self.dim = config.dim
        self._config = config
        self._real = config.function == "exp"
        self._num = config.dim if self._real else config.dim // 2
        self.num_negative = config.dim - self._num
        self._drawn: dict[tuple[int, torch.device], tuple[torch.Tensor, Spectrum]] = {}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, K) features of (N, D) samples; further axes are flattened.

        Raises:
            ConfigError: The samples have no coordinates.
        """
        x_ND = as_vectors(x)
        return torch.cat(self._parts(x_ND, x_ND.new_zeros(len(x_ND))), dim=1)

    def bundle(self, weights_OD: torch.Tensor, biases_O: torch.Tensor | None = None) -> torch.Tensor:
        """Return the (K, O) matrix B of a layer: features(x) @ B estimates f(scale <x, w_o> + offset + bias_o).

        Inputs and weights meet in one product only, so that this matrix replaces the layer, without bias in
        expectation.

        Raises:
            ConfigError: Weights and biases are not of the same number of outputs.
        """
        weights_OD = as_vectors(weights_OD)
        if biases_O is None:
            biases_O = weights_OD.new_zeros(len(weights_OD))
        if biases_O.shape != (len(weights_OD),):
            raise ConfigError(
                f"{len(weights_OD)} weight vectors need biases of shape ({len(weights_OD)},), "
                f"found {tuple(biases_O.shape)}."
            )
        positive, *negative = self._parts(weights_OD, biases_O.double())
        return torch.cat((positive, *(-part for part in negative)), dim=1).T

    def _parts(self, x_ND: torch.Tensor, biases_N: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return real and imaginary parts of u, or u alone where it is real; a bias is added to the inner product."""
        vectors_MD, spectral = self._draw(x_ND.shape[1], x_ND.device)
        x_ND = x_ND * math.sqrt(self._config.scale)
        projections_NM = x_ND @ vectors_MD.T
        shifts_N1 = (biases_N + self._config.offset / 2 - x_ND.square().sum(dim=1) / 2).unsqueeze(1)
        if self._real:
            return ((projections_NM + shifts_N1).exp() / math.sqrt(self._num),)
        # a = sqrt(s) exp(i pi / 4) has equal real and imaginary parts.
        turned_NM = (spectral.frequencies_M / 2).sqrt() * projections_NM
        moduli_NM = turned_NM.exp() * (spectral.moduli_M / self._num).sqrt()
        phases_NM = turned_NM + spectral.frequencies_M * shifts_N1 + spectral.angle / 2
        return moduli_NM * phases_NM.cos(), moduli_NM * phases_NM.sin()

    def _draw(self, width: int, device: torch.device) -> tuple[torch.Tensor, "Spectrum"]:
        key, config = (width, device), self._config
        if key not in self._drawn:
            vectors_MD = coupled_normals(config.coupling, config.seed, 0, self._num, width).to(device)
            self._drawn = {key: (vectors_MD, spectrum(config.function, config.seed, self._num).to(device))}
        return self._drawn[key]


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A sample of the spectrum of f(t) = Re E[c(s) exp(i s t)]."""

    frequencies_M: torch.Tensor
    """s."""
    moduli_M: torch.Tensor
    """|c(s)|."""
    angle: float
    """Of c, in radians."""

    def to(self, device: torch.device) -> "Spectrum":
        """Return it on a device."""
        return Spectrum(self.frequencies_M.to(device), self.moduli_M.to(device), self.angle)


def spectrum(function: Literal["cosine", "sine", "gaussian", "sinc", "erf", "exp"], seed: int, num: int) -> Spectrum:
    """Draw frequencies of a function and what each of them counts.

    ``erf``: erf(t) = 2 / pi times the integral of sin(s t) exp(-s^2 / 4) / s over s > 0. Squares of normal numbers have
    the density exp(-s / 2) / sqrt(2 pi s). Terms c, of the order 1 / sqrt(s), cancel in an inner product up to one of
    the order of 1, so that its variance is finite, unlike the second moment of c.
    """
    ones_M = torch.ones(num, dtype=torch.float64, device=CPU)
    stream = Stream(seed, ("spectrum", function))
    if function == "gaussian":
        return Spectrum(stream.normals(num, 1)[:, 0].abs(), ones_M, 0.0)
    if function == "sinc":
        return Spectrum(stream.uniforms(torch.arange(num, device=CPU)), ones_M, 0.0)
    if function == "erf":
        # A normal number may be zero to rounding, where the modulus has its pole.
        squares_M = stream.normals(num, 1)[:, 0].square().clamp_min(1e-300)
        moduli_M = math.sqrt(8 / math.pi) * (squares_M / 2 - squares_M.square() / 4).exp() / squares_M.sqrt()
        return Spectrum(squares_M, moduli_M, -math.pi / 2)
    return Spectrum(ones_M, ones_M, -math.pi / 2 if function == "sine" else 0.0)


def fitted_bundle(features_NK: torch.Tensor, targets_NO: torch.Tensor, ridge: float) -> torch.Tensor:
    """Return the (K, O) matrix B that minimises |F B - T|^2 + ridge |B|^2: the best bundled layer for given outputs.

    Unlike :meth:`UniversalFeatures.bundle` it is biased, and adapted to the samples that it is fitted to.

    Args:
        features_NK: F.
        targets_NO: T, the outputs of the layer that is to be replaced.
        ridge: Positive.
    """
    gram_KK = features_NK.T @ features_NK
    gram_KK.diagonal().add_(ridge)
    return torch.cholesky_solve(features_NK.T @ targets_NO, torch.linalg.cholesky(gram_KK))
