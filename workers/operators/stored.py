"""Stored features and stored kernels between two splits, some rows at a time."""

from collections.abc import Callable
from typing import final

import numpy as np
import torch

from ntkpipe.storage.arrays import Array
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.operators.rectangle import AbstractRectangle


@final
class StoredFeatures(AbstractRectangle):
    """The (N, K) features of a kernel, read again in every pass unless they fit ``cache_bytes``.

    Args:
        read: Returns the (M, K) features of a range of samples, ready for inner products.
        shape: (N, K).
        dtype: Of the features.
        block_rows: Read at a time.
        cache_bytes: Features up to this size are kept in memory once they were read.
    """

    def __init__(
        self,
        read: Callable[[int, int], Array],
        shape: tuple[int, int],
        dtype: torch.dtype,
        *,
        block_rows: int,
        cache_bytes: int,
    ) -> None:
        self._read = read
        self._cache: dict[tuple[int, int], torch.Tensor] = {}
        self._cached = shape[0] * shape[1] * dtype.itemsize <= cache_bytes
        self.shape = shape
        self.dtype = dtype
        self.block_rows = min(block_rows, shape[0])
        self.entry_bytes = 0.0 if self._cached else float(dtype.itemsize)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Read rows; those of a block are kept if all features fit the cache."""
        found = self._cache.get((start, stop))
        if found is not None:
            return found
        rows_MK = torch.from_numpy(np.array(self._read(start, stop))).to(self.dtype)
        check_finite("the feature matrix", rows_MK, row=start)
        if self._cached and start % self.block_rows == 0 and stop == min(start + self.block_rows, self.shape[0]):
            self._cache[start, stop] = rows_MK
        return rows_MK


@final
class StoredRectangle(AbstractRectangle):
    """The (M, N) kernel between two splits, tile by tile."""

    def __init__(self, matrix: AbstractMatrix) -> None:
        self._matrix = matrix
        self.shape = matrix.shape
        self.dtype = torch.float64 if matrix.dtype == np.float64 else torch.float32
        self.block_rows = min(matrix.block_rows, matrix.shape[0])
        self.entry_bytes = float(matrix.dtype.itemsize)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Read all tiles that touch the rows."""
        parts = []
        for row in range(start // self._matrix.block_rows, num_chunks(stop, self._matrix.block_rows)):
            columns = range(num_chunks(self.shape[1], self._matrix.block_rows))
            strip = np.concatenate([self._matrix.any_tile(row, column) for column in columns], axis=1)
            first = row * self._matrix.block_rows
            parts.append(torch.from_numpy(strip[max(start - first, 0) : stop - first]))
        rows_MN = torch.cat(parts).to(self.dtype)
        check_finite("the kernel matrix", rows_MN, row=start)
        return rows_MN
