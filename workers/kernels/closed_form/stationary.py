"""Positive kernels of the distance between two vectors."""

import math
from typing import Protocol, final

import torch

from ntkpipe.configs.kernels.distances import DispersalConfig, GaussianConfig, LaplaceConfig, MaternConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.distances import Distances
from ntkpipe.workers.kernels.closed_form.samples import as_vectors, vector_pair
from ntkpipe.workers.kernels.closed_form.tiling import fill


@final
class GaussianKernel(AbstractClosedForm):
    """exp(-|x - y|^2 / (2 w^2)); see :class:`ntkpipe.configs.kernels.distances.GaussianConfig`.

    Samples of any shape are taken as vectors. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: GaussianConfig) -> None:
        self._bandwidth = config.bandwidth

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        return _filled(self, rows_NX, columns_MX, self.diagonal(x))

    def of_squared(self, squared_RC: torch.Tensor) -> torch.Tensor:
        """Turn squared distances into entries, in place."""
        # One division at a time: the square of a tiny bandwidth would underflow.
        return squared_RC.div_(self._bandwidth).div_(self._bandwidth).mul_(-0.5).exp_()

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return ones."""
        return _ones(x)


@final
class LaplaceKernel(AbstractClosedForm):
    """exp(-|x - y| / w) in L1 or L2; see :class:`ntkpipe.configs.kernels.distances.LaplaceConfig`.

    Samples of any shape are taken as vectors. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d). L1
    has no matrix product to rest on: it is several times slower.
    """

    def __init__(self, config: LaplaceConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        num_columns = None if columns_MX is None else len(columns_MX)
        if self._config.norm == "l1":
            others_MX = rows_NX if columns_MX is None else columns_MX

            def entries(rows: slice, columns: slice) -> torch.Tensor:
                return torch.cdist(rows_NX[rows], others_MX[columns], p=1.0).div_(-self._config.bandwidth).exp_()

            return fill(len(rows_NX), num_columns, entries, self.diagonal(x))
        return _filled(self, rows_NX, columns_MX, self.diagonal(x))

    @property
    def is_euclidean(self) -> bool:
        """Whether it is a function of the Euclidean distance."""
        return self._config.norm == "l2"

    def of_squared(self, squared_RC: torch.Tensor) -> torch.Tensor:
        """Turn squared Euclidean distances into entries, in place."""
        return squared_RC.sqrt_().div_(-self._config.bandwidth).exp_()

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return ones."""
        return _ones(x)


@final
class MaternKernel(AbstractClosedForm):
    """Smoothness 1/2, 3/2 or 5/2; see :class:`ntkpipe.configs.kernels.distances.MaternConfig`.

    Samples of any shape are taken as vectors. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: MaternConfig) -> None:
        self._nu = config.nu
        self._bandwidth = config.bandwidth

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        return _filled(self, rows_NX, columns_MX, self.diagonal(x))

    def of_squared(self, squared_RC: torch.Tensor) -> torch.Tensor:
        """Turn squared distances into entries; what is given is overwritten."""
        scaled_RC = squared_RC.sqrt_().mul_(math.sqrt(2 * self._nu)).div_(self._bandwidth)
        decay_RC = torch.exp(-scaled_RC)
        if self._nu == 0.5:
            return decay_RC
        if self._nu == 1.5:
            return decay_RC.mul_(scaled_RC.add_(1))
        # Far away the polynomial overflows long after the exponential has become zero, and 0 inf is no number.
        return (1 + scaled_RC + scaled_RC.clamp(max=1e9).square_().div_(3)).mul_(decay_RC)

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return ones."""
        return _ones(x)


@final
class DispersalKernel(AbstractClosedForm):
    """exp(-(|x - y| / w)^g); see :class:`ntkpipe.configs.kernels.distances.DispersalConfig`.

    Samples of any shape are taken as vectors. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: DispersalConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        return _filled(self, rows_NX, columns_MX, self.diagonal(x))

    def of_squared(self, squared_RC: torch.Tensor) -> torch.Tensor:
        """Turn squared distances into entries, in place."""
        bandwidth = self._config.bandwidth
        return squared_RC.div_(bandwidth).div_(bandwidth).pow_(self._config.exponent / 2).neg_().exp_()

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return ones."""
        return _ones(x)


class OfDistances(Protocol):
    """A kernel that is a function of the squared Euclidean distance."""

    def of_squared(self, squared_RC: torch.Tensor) -> torch.Tensor:
        """Turn squared distances into entries; what is given may be overwritten."""


def _filled(
    kernel: OfDistances, rows_NX: torch.Tensor, columns_MX: torch.Tensor | None, diagonal_N: torch.Tensor
) -> torch.Tensor:
    distances = Distances(rows_NX, columns_MX)
    num_columns = None if columns_MX is None else len(columns_MX)

    def entries(rows: slice, columns: slice) -> torch.Tensor:
        return kernel.of_squared(distances.squared(rows, columns))

    return fill(len(rows_NX), num_columns, entries, diagonal_N)


def _ones(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(as_vectors(x)), dtype=torch.float64, device=x.device)
