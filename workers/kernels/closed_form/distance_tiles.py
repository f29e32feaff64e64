"""Kernels of the Euclidean distance in single precision, for matrices that are computed anew in every pass."""

from typing import Any, TypeGuard, final

import numpy as np
import numpy.typing as npt
import torch

from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.distances import replace_near
from ntkpipe.workers.kernels.closed_form.samples import as_vectors
from ntkpipe.workers.kernels.closed_form.stationary import (
    DispersalKernel,
    GaussianKernel,
    LaplaceKernel,
    MaternKernel,
    OfDistances,
)

NEAR = 2.0**-7
"""Below this share of the two squared norms, products of matrices in single precision lose more than 7 of 24 bits of a
squared distance; such pairs are subtracted coordinate by coordinate."""


@final
class DistanceTiles:
    """The lower triangle of a kernel matrix, float32, in tiles that are forgotten; memory is that of a tile.

    Samples are centred and their norms taken once, which a formula that sees two sets of samples has to do every time.
    Relative errors of squared distances stay below about 1e-5, so that entries are as good as single precision stores
    them.

    Args:
        kernel: A function of the squared distance.
        x: (N, ...) samples, taken as vectors.
        block_rows: Rows and columns of a tile.
    """

    dtype: "np.dtype[Any]" = np.dtype(np.float32)

    def __init__(self, kernel: OfDistances, x: torch.Tensor, block_rows: int) -> None:
        vectors_NX = as_vectors(x)
        centred_NX = vectors_NX - vectors_NX.mean(0)
        self._kernel = kernel
        self._x_NX = centred_NX.float()
        # Of the rounded vectors, so that equal ones are at distance zero up to the rounding of a product.
        self._squares_N = self._x_NX.double().square().sum(1).float()
        self.block_rows = block_rows

    @property
    def size(self) -> int:
        """N."""
        return len(self._x_NX)

    def tile(self, row: int, column: int) -> npt.NDArray[Any]:
        """Compute a tile; one on the diagonal is symmetric to the last bit."""
        rows, columns = (slice(index * self.block_rows, (index + 1) * self.block_rows) for index in (row, column))
        tile_RC = self._between(rows, columns)
        if row == column:
            tile_RC = tile_RC.tril(-1) + tile_RC.tril(-1).T
            tile_RC.diagonal().copy_(self._at_zero(len(tile_RC)))
        values: npt.NDArray[Any] = tile_RC.numpy()
        return values

    def read(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Compute the entries at all pairs of some positions, some rows at a time."""
        columns_S = torch.from_numpy(columns)
        values = np.empty((len(rows), len(columns)), np.float32)
        for start in range(0, len(rows), self.block_rows):
            part = torch.from_numpy(rows[start : start + self.block_rows])
            found_RC = self._between(part, columns_S)
            found_RC[part.unsqueeze(1) == columns_S] = self._at_zero(1)
            values[start : start + self.block_rows] = found_RC.numpy()
        return values

    def diagonal(self) -> npt.NDArray[Any]:
        """Return the value at distance zero for all samples."""
        values: npt.NDArray[Any] = self._at_zero(self.size).numpy()
        return values

    def _at_zero(self, num: int) -> torch.Tensor:
        return self._kernel.of_squared(torch.zeros(num, 1)).squeeze(1)

    def _between(self, rows: slice | torch.Tensor, columns: slice | torch.Tensor) -> torch.Tensor:
        rows_RX, columns_CX = self._x_NX[rows], self._x_NX[columns]
        squares_RC = self._squares_N[rows].unsqueeze(1) + self._squares_N[columns]
        found_RC = torch.addmm(squares_RC, rows_RX, columns_CX.T, alpha=-2)
        return self._kernel.of_squared(replace_near(found_RC, found_RC <= NEAR * squares_RC, rows_RX, columns_CX))


def of_distances(
    kernel: AbstractClosedForm,
) -> TypeGuard[GaussianKernel | LaplaceKernel | MaternKernel | DispersalKernel]:
    """Return whether a kernel is a function of the Euclidean distance."""
    if isinstance(kernel, LaplaceKernel):
        return kernel.is_euclidean
    return isinstance(kernel, GaussianKernel | MaternKernel | DispersalKernel)
