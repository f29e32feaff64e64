"""Kernels of infinitely wide fully connected networks: the tangent kernel and the covariance of outputs."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.infinite_width import InfiniteWidthConfig, NngpLimitConfig, NtkConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.distances import Angles, unit_rows
from ntkpipe.workers.kernels.closed_form.duals.base import AbstractDual, LayerMoments, PairMoments
from ntkpipe.workers.kernels.closed_form.duals.piecewise_linear import PiecewiseLinearDual
from ntkpipe.workers.kernels.closed_form.duals.series import SeriesDual
from ntkpipe.workers.kernels.closed_form.duals.smooth import ErfDual, GeluDual, TrigonometricDual
from ntkpipe.workers.kernels.closed_form.samples import as_vectors, vector_pair
from ntkpipe.workers.kernels.closed_form.tiling import fill
from ntkpipe.workers.sources.imports import resolve


@dataclass(frozen=True, slots=True)
class _Layer:
    """A hidden layer as it sees each of S samples, and the variances of what follows it."""

    moments: LayerMoments
    """Of the activation."""
    weighted_S: torch.Tensor
    """Square roots of what weights contribute to the next variances."""
    total_S: torch.Tensor
    """Square roots of the next variances."""

    def part(self, samples: slice) -> "_Layer":
        return _Layer(self.moments.part(samples), self.weighted_S[samples], self.total_S[samples])


@dataclass(frozen=True, slots=True)
class _Rates:
    """What is added to the tangent kernel by each kind of parameters, per unit of the covariance that they act on."""

    inputs: float
    hidden: float
    biases: float


@final
class NtkKernel(AbstractClosedForm):
    """The neural tangent kernel; see :class:`ntkpipe.configs.kernels.infinite_width.NtkConfig`.

    Samples of any shape are taken as vectors. All layers are computed for one strip of the matrix after the other:
    O(N M (d + depth)) time, O(N M) memory, which is the result, and O((N + M) (d + depth)); for activations without a
    closed form depth is multiplied by the terms of their series. Recursions carry angles instead of cosines, whose
    errors near 1 a ReLU would turn from 1e-16 into 1e-8.
    """

    def __init__(self, config: NtkConfig) -> None:
        self._network = _Network(config)
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, one is not finite, variances overflow, or
                the activation's series does not reach its tolerance.
        """
        return self._network.block(x, x2, self._rates(x))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return the kernel of every sample with itself.

        Raises:
            ConfigError: As :meth:`block`.
        """
        return self._network.diagonal(as_vectors(x), self._rates(x))

    def _rates(self, x: torch.Tensor) -> _Rates:
        config = self._config
        if config.parameterisation == "ntk":
            return _Rates(config.weight_variance, config.weight_variance, config.bias_variance or 0.0)
        if config.width is None:
            return _Rates(0.0, 1.0, 0.0)
        fan_in = as_vectors(x).shape[1] if config.inner_product == "mean" else 1
        return _Rates(fan_in, config.width, 0.0 if config.bias_variance is None else 1.0)


@final
class NngpLimitKernel(AbstractClosedForm):
    """The covariance of outputs; see :class:`ntkpipe.configs.kernels.infinite_width.NngpLimitConfig`.

    Samples, time and memory as for :class:`NtkKernel`.
    """

    def __init__(self, config: NngpLimitConfig) -> None:
        self._network = _Network(config)

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, one is not finite, variances overflow, or
                the activation's series does not reach its tolerance.
        """
        return self._network.block(x, x2, None)

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return the kernel of every sample with itself.

        Raises:
            ConfigError: As :meth:`block`.
        """
        return self._network.diagonal(as_vectors(x), None)


@final
class _Network:
    """The recursion over layers. Without rates of parameters it is that of covariances only."""

    def __init__(self, config: InfiniteWidthConfig) -> None:
        self._config = config
        self._dual = _dual_of(config)
        self._bias = config.bias_variance or 0.0

    @functools.cached_property
    def _weight(self) -> float:
        """The variance of weights times the factor that normalises the activation."""
        if not self._config.normalise:
            return self._config.weight_variance
        one_S = torch.ones(1, dtype=torch.float64, device="cpu")
        mean = float(self._dual.prepare(one_S, slopes=False).value_S)
        if mean == 0:
            raise ConfigError(
                f"activation {self._config.activation} is zero almost everywhere and cannot be normalised."
            )
        return self._config.weight_variance / mean

    def block(self, x: torch.Tensor, x2: torch.Tensor | None, rates: _Rates | None) -> torch.Tensor:
        rows_NX, columns_MX = vector_pair(x, x2)
        angles = Angles(self._inputs(rows_NX), None if columns_MX is None else self._inputs(columns_MX))
        num_rows = len(rows_NX)
        if columns_MX is None:
            lengths_S, shift = angles.lengths_N, 0
        else:
            lengths_S, shift = torch.cat([angles.lengths_N, angles.lengths_M]), num_rows
        layers = self._layers(lengths_S, rates is not None)

        def entries(rows: slice, columns: slice) -> torch.Tensor:
            angles_RC = angles.angles(rows, columns)
            shifted = slice(columns.start + shift, columns.stop + shift)
            inputs_RC = lengths_S[rows].unsqueeze(1) * lengths_S[shifted]
            inputs_RC.mul_(torch.cos(angles_RC))
            return self._pairs(
                angles_RC, inputs_RC, [(layer.part(rows), layer.part(shifted)) for layer in layers], rates
            )

        if columns_MX is None:
            return fill(num_rows, None, entries, self._diagonal(lengths_S, layers, rates))
        return fill(num_rows, len(columns_MX), entries, lengths_S)

    def diagonal(self, vectors_NX: torch.Tensor, rates: _Rates | None) -> torch.Tensor:
        lengths_N = unit_rows(self._inputs(vectors_NX))[1]
        return self._diagonal(lengths_N, self._layers(lengths_N, rates is not None), rates)

    def _diagonal(self, lengths_N: torch.Tensor, layers: list[_Layer], rates: _Rates | None) -> torch.Tensor:
        kernel_N = self._first(lengths_N.square(), rates)
        for layer in layers:
            kernel_N = self._next(kernel_N, layer.moments.value_S, layer.moments.slope_S, rates)
        return kernel_N

    def _inputs(self, vectors_NX: torch.Tensor) -> torch.Tensor:
        """Return vectors whose inner products are the first covariances; the bias is one more coordinate."""
        width = vectors_NX.shape[1]
        if self._config.inner_product == "cosine":
            vectors_NX = unit_rows(vectors_NX)[0]
        scale = self._config.weight_variance / (width if self._config.inner_product == "mean" else 1)
        bias_N1 = vectors_NX.new_full((len(vectors_NX), 1), math.sqrt(self._bias))
        return torch.cat([vectors_NX * math.sqrt(scale), bias_N1], 1)

    def _layers(self, lengths_S: torch.Tensor, slopes: bool) -> list[_Layer]:
        """Return all hidden layers' moments.

        Raises:
            ConfigError: Variances overflow.
        """
        layers: list[_Layer] = []
        variances_S = lengths_S.square()
        for depth in range(self._config.depth):
            moments = self._dual.prepare(variances_S, slopes=slopes)
            weighted_S = moments.value_S * self._weight
            variances_S = weighted_S + self._bias
            if not bool(torch.isfinite(variances_S).all()):
                raise ConfigError(
                    f"the variance of the units of layer {depth + 1} exceeds double precision; reduce weight_variance = "
                    f"{self._config.weight_variance}, depth, or the size of the samples."
                )
            layers.append(_Layer(moments, weighted_S.sqrt(), variances_S.sqrt()))
        return layers

    def _pairs(
        self,
        angles_RC: torch.Tensor,
        inputs_RC: torch.Tensor,
        layers: list[tuple[_Layer, _Layer]],
        rates: _Rates | None,
    ) -> torch.Tensor:
        kernel_RC = self._first(inputs_RC, rates)
        for depth, (rows, columns) in enumerate(layers):
            pairs = self._dual.pairs(angles_RC, rows.moments, columns.moments)
            kernel_RC = self._next(kernel_RC, pairs.value_RC, pairs.slope_RC, rates)
            if depth + 1 < len(layers):
                angles_RC = self._angles(pairs, rows, columns)
        return kernel_RC

    def _first(self, inputs: torch.Tensor, rates: _Rates | None) -> torch.Tensor:
        if rates is None:
            return inputs
        return (inputs - self._bias).mul_(rates.inputs / self._config.weight_variance).add_(rates.biases)

    def _next(
        self, kernel: torch.Tensor, value: torch.Tensor, slope: torch.Tensor | None, rates: _Rates | None
    ) -> torch.Tensor:
        """Return the covariance after a layer or, with rates, the tangent kernel of the network up to there."""
        if rates is None or slope is None:
            return value * self._weight + self._bias
        gain = self._weight / self._config.weight_variance
        return (kernel * slope).mul_(self._weight).add_(value, alpha=rates.hidden * gain).add_(rates.biases)

    def _angles(self, pairs: PairMoments, rows: _Layer, columns: _Layer) -> torch.Tensor:
        """Return the angles of the next layer's units from 1 - cos, all parts of which are free of cancellation.

        With A and C the weights' part of the two variances and s the bias variance, sqrt((A + s)(C + s)) - sqrt(A C) - s
        is s (sqrt A - sqrt C)^2 / (sqrt((A + s)(C + s)) + sqrt(A C) + s).
        """
        totals_RC = rows.total_S.unsqueeze(1) * columns.total_S
        deficit_RC = pairs.gap_RC * self._weight
        if self._bias:
            spread_RC = (rows.weighted_S.unsqueeze(1) - columns.weighted_S).square_()
            sums_RC = (rows.weighted_S.unsqueeze(1) * columns.weighted_S).add_(totals_RC).add_(self._bias)
            deficit_RC.add_(spread_RC.div_(sums_RC), alpha=self._bias)
        angles_RC = deficit_RC.div_(totals_RC).div_(2).clamp_(0, 1).sqrt_().asin_().mul_(2)
        return angles_RC.masked_fill_(totals_RC == 0, math.pi / 2)


def _dual_of(config: InfiniteWidthConfig) -> AbstractDual:
    """Return the expectations of the activation that a configuration names.

    Raises:
        ConfigError: It names an activation that cannot be imported.
    """
    match config.activation:
        case "relu":
            return PiecewiseLinearDual(0.0)
        case "leaky_relu":
            return PiecewiseLinearDual(config.slope)
        case "abs":
            return PiecewiseLinearDual(-1.0)
        case "identity":
            return PiecewiseLinearDual(1.0)
        case "erf":
            return ErfDual()
        case "gelu":
            return GeluDual()
        case "sine" | "cosine":
            return TrigonometricDual(config.frequency, even=config.activation == "cosine")
    function = _SERIES.get(config.activation) or resolve(config.activation)
    return SeriesDual(function, config.activation, config.tolerance)


def _softplus(z: torch.Tensor) -> torch.Tensor:
    # PyTorch's own softplus is cut off at 20, an error of 2e-9.
    return torch.logaddexp(z, torch.zeros_like(z))


def _mish(z: torch.Tensor) -> torch.Tensor:
    return z * torch.tanh(_softplus(z))


_SERIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mish": _mish,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "softplus": _softplus,
    "tanh": torch.tanh,
}
