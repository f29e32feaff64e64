"""A closed form in tiles that are computed whenever they are read, and never kept."""

from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch

from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm


@final
class FormulaTiles:
    """The lower triangle of the kernel matrix of a set of samples; memory is that of a tile.

    Args:
        kernel: The formula.
        x: (N, ...) samples as it wants them.
        block_rows: Rows and columns of a tile.
        single: Round entries to float32.
    """

    def __init__(self, kernel: AbstractClosedForm, x: torch.Tensor, block_rows: int, *, single: bool = False) -> None:
        self.dtype: np.dtype[Any] = np.dtype(np.float32 if single else np.float64)
        self._kernel = kernel
        self._x = x
        self.block_rows = block_rows

    @property
    def size(self) -> int:
        """N."""
        return len(self._x)

    def tile(self, row: int, column: int) -> npt.NDArray[Any]:
        """Compute a tile; one on the diagonal is symmetric to the last bit."""
        rows, columns = (self._x[index * self.block_rows : (index + 1) * self.block_rows] for index in (row, column))
        values: npt.NDArray[Any] = (
            self._kernel.block(rows, None if row == column else columns).cpu().numpy().astype(self.dtype, copy=False)
        )
        return values

    def read(self, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Compute the entries at all pairs of some positions."""
        left, right = (self._x[torch.from_numpy(positions)] for positions in (rows, columns))
        values: npt.NDArray[Any] = self._kernel.block(left, right).cpu().numpy().astype(self.dtype, copy=False)
        return values

    def diagonal(self) -> npt.NDArray[Any]:
        """Compute the diagonal alone."""
        values: npt.NDArray[Any] = self._kernel.diagonal(self._x).cpu().numpy().astype(self.dtype, copy=False)
        return values
