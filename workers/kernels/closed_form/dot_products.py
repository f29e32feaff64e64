"""Kernels of the inner product of two vectors, or of the angle between them."""

import math
from typing import final

import torch

from ntkpipe.configs.kernels.dot_products import ArcCosineConfig, CosineConfig, PolynomialConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.distances import Angles, unit_rows
from ntkpipe.workers.kernels.closed_form.duals.piecewise_linear import kappas
from ntkpipe.workers.kernels.closed_form.samples import as_vectors, vector_pair
from ntkpipe.workers.kernels.closed_form.tiling import fill


@final
class PolynomialKernel(AbstractClosedForm):
    """(scale <x, y> + offset)^degree; see :class:`ntkpipe.configs.kernels.dot_products.PolynomialConfig`.

    Samples of any shape are taken as vectors. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: PolynomialConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        others_MX = rows_NX if columns_MX is None else columns_MX

        def entries(rows: slice, columns: slice) -> torch.Tensor:
            return self._of_products(rows_NX[rows] @ others_MX[columns].T)

        return fill(len(rows_NX), None if columns_MX is None else len(columns_MX), entries, self.diagonal(x))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return (scale |x|^2 + offset)^degree."""
        return self._of_products(as_vectors(x).square().sum(1))

    def _of_products(self, products: torch.Tensor) -> torch.Tensor:
        return products.mul_(self._config.scale).add_(self._config.offset).pow_(self._config.degree)


@final
class CosineKernel(AbstractClosedForm):
    """<x, y> / (|x| |y|); see :class:`ntkpipe.configs.kernels.dot_products.CosineConfig`.

    Samples of any shape are taken as vectors. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: CosineConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors, within [-1, 1]; rows and columns of zero vectors are 0.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        units_NX = unit_rows(rows_NX)[0]
        others_MX = units_NX if columns_MX is None else unit_rows(columns_MX)[0]

        def entries(rows: slice, columns: slice) -> torch.Tensor:
            return (units_NX[rows] @ others_MX[columns].T).clamp_(-1, 1)

        return fill(len(rows_NX), None if columns_MX is None else len(columns_MX), entries, self.diagonal(x))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1 for every sample, 0 for zero vectors."""
        return (as_vectors(x) != 0).any(1).to(torch.float64)


@final
class ArcCosineKernel(AbstractClosedForm):
    """The arc-cosine kernel of order 0, 1 or 2; see :class:`ntkpipe.configs.kernels.dot_products.ArcCosineConfig`.

    Samples of any shape are taken as vectors. O(N M d) time, O(N M) memory, which is the result, and O((N + M) d).
    """

    def __init__(self, config: ArcCosineConfig) -> None:
        self._order = config.order

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between vectors.

        Raises:
            ConfigError: The two sets have different numbers of coordinates, or one is not finite.
        """
        rows_NX, columns_MX = vector_pair(x, x2)
        angles = Angles(rows_NX, columns_MX)

        def entries(rows: slice, columns: slice) -> torch.Tensor:
            shape_RC = self._of_angles(angles.angles(rows, columns))
            if self._order == 0:
                return shape_RC
            lengths_RC = angles.lengths_N[rows].unsqueeze(1) * angles.lengths_M[columns]
            return shape_RC.mul_(lengths_RC.pow_(self._order))

        return fill(len(rows_NX), None if columns_MX is None else len(columns_MX), entries, self.diagonal(x))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return 1, |x|^2 or 3 |x|^4 for orders 0, 1 and 2; 1/2, 0 and 0 for zero vectors."""
        squares_N = as_vectors(x).square().sum(1)
        if self._order == 0:
            return torch.where((as_vectors(x) != 0).any(1), 1.0, 0.5).to(torch.float64)
        return squares_N if self._order == 1 else 3 * squares_N.square()

    def _of_angles(self, angles: torch.Tensor) -> torch.Tensor:
        if self._order == 0:
            return 1 - angles / math.pi
        sines, cosines = torch.sin(angles), torch.cos(angles)
        shape, switched = kappas(cosines, sines, angles)
        if self._order == 2:
            shape = (1 + 2 * cosines.square()).mul_(switched).add_(sines.mul_(cosines), alpha=3 / math.pi)
        # Opposite vectors have zero, which rounding may miss on the wrong side.
        return shape.clamp_(min=0)
