"""A symmetric matrix in stored tiles of its lower triangle."""

from typing import Any, Protocol, final

import numpy as np
import numpy.typing as npt
import torch

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.checks import check_finite, symmetrised


class TileReader(Protocol):
    """Where tiles come from, such as the storage layer's kernel reader."""

    block_rows: int
    dtype: "np.dtype[Any]"

    @property
    def size(self) -> int:
        """N."""

    def tile(self, row: int, column: int) -> npt.NDArray[Any]:
        """Return the tile of two block indices, ``row >= column``, clipped at the edge of the matrix."""

    def diagonal(self) -> npt.NDArray[Any]:
        """Return the (N,) diagonal."""


@final
class BlockedOperator(AbstractOperator):
    """Reads each tile once per product and uses it for both of its places; memory is O(tile + N T).

    Every tile is checked when it is read: a NumericalError names the first entry that is NaN or infinite, or the worst
    difference between the two triangles of a tile on the diagonal, which are otherwise averaged.
    """

    def __init__(self, tiles: TileReader) -> None:
        self._tiles = tiles
        self.size = tiles.size
        self.dtype = torch.float64 if tiles.dtype == np.float64 else torch.float32
        self.block_rows = min(tiles.block_rows, tiles.size)

    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Add up tile products in storage order, which fixes every bit of the result."""
        product_NT = torch.zeros(self.size, vectors_NT.shape[1], dtype=vectors_NT.dtype)
        for row in range(self._num_blocks):
            for column in range(row + 1):
                tile = self._tile(row, column, vectors_NT.dtype)
                rows, columns = self._range(row), self._range(column)
                product_NT[rows] += tile @ vectors_NT[columns]
                if row != column:
                    product_NT[columns] += tile.T @ vectors_NT[rows]
        return product_NT

    def diagonal(self) -> torch.Tensor:
        """Read the tiles on the diagonal."""
        return torch.from_numpy(np.array(self._tiles.diagonal()))

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Read all tiles that touch the rows, from either side of the diagonal."""
        parts = []
        for row in range(start // self.block_rows, -(-stop // self.block_rows)):
            strip = torch.cat(
                [
                    self._tile(row, column, self.dtype) if column <= row else self._tile(column, row, self.dtype).T
                    for column in range(self._num_blocks)
                ],
                dim=1,
            )
            first = row * self.block_rows
            parts.append(strip[max(start - first, 0) : stop - first])
        return torch.cat(parts)

    @property
    def _num_blocks(self) -> int:
        return -(-self.size // self.block_rows)

    def _range(self, block: int) -> slice:
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.size))

    def _tile(self, row: int, column: int, dtype: torch.dtype) -> torch.Tensor:
        values = np.ascontiguousarray(self._tiles.tile(row, column))
        # torch warns of memory it may not write to, such as a mapped file or a read-only cache.
        tile = torch.from_numpy(values if values.flags.writeable else values.copy()).to(self.dtype)
        check_finite("the kernel matrix", tile, row=self._range(row).start, column=self._range(column).start)
        return (symmetrised(tile, start=self._range(row).start) if row == column else tile).to(dtype)
