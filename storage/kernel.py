"""Reading stored kernel matrices by position; only what is committed, mirrored from the lower triangle."""

from collections import OrderedDict
from typing import Final, final

import numpy as np
import numpy.typing as npt

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.grid import Block, num_chunks, pair_name, shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Geometry

KERNEL_STAGE: Final = "kernel"
Positions = npt.NDArray[np.int64]


@final
class KernelReader:
    """One stored kernel matrix, or one of its components. Holds at most ``cache_bytes`` of decoded tiles.

    Attributes:
        shape: (N, M).
        block_rows: Rows and columns of a tile.
        symmetric: Whether only the lower triangle is stored.
        dtype: Of the entries.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        ledger: Ledger,
        geometry: Geometry,
        kernel: str,
        row_split: str,
        column_split: str,
        *,
        group: int | None = None,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        pair = pair_name(row_split, column_split)
        self._chunks = chunks
        self._ledger = ledger
        self._splits = (row_split, column_split)
        self._path = layout.kernel(kernel, pair) if group is None else layout.component(kernel, pair)
        self._prefix = () if group is None else (group,)
        self._cache: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self.shape = (geometry.splits[row_split].num_samples, geometry.splits[column_split].num_samples)
        self.block_rows = geometry.block_rows
        self.symmetric = row_split == column_split
        self.dtype = np.dtype(geometry.dtype)

    @property
    def size(self) -> int:
        """N, of a symmetric matrix."""
        assert self.symmetric
        return self.shape[0]

    def tile(self, row: int, column: int) -> Array:
        """Return a stored block, clipped to the matrix; of a symmetric one only ``row >= column`` is stored.

        Raises:
            ChunkNotReadyError: It has not been committed yet.
            CorruptChunkError: Its bytes are damaged or gone.
        """
        assert row >= column or not self.symmetric
        cached = self._cache.get((row, column))
        if cached is not None:
            self._cache.move_to_end((row, column))
            return cached
        rows, columns = (
            shard_at(split, index, size, self.block_rows)
            for split, index, size in zip(self._splits, (row, column), self.shape, strict=True)
        )
        self._ledger.require(KERNEL_STAGE, Block(rows, columns).task)
        values = self._chunks.read(self._path, (*self._prefix, row, column))
        values = values[0] if self._prefix else values
        self._keep((row, column), values)
        return values

    def diagonal(self) -> Array:
        """Return the (N,) diagonal of a symmetric matrix."""
        return np.concatenate([np.diagonal(self.tile(i, i)) for i in range(num_chunks(self.size, self.block_rows))])

    def read(self, rows: Positions, columns: Positions) -> Array:
        """Return entries at all pairs of the given positions, (len(rows), len(columns)), each tile read once."""
        values = np.empty((len(rows), len(columns)), self.dtype)
        row_blocks, column_blocks = rows // self.block_rows, columns // self.block_rows
        for row in np.unique(row_blocks):
            for column in np.unique(column_blocks):
                at_rows, at_columns = np.flatnonzero(row_blocks == row), np.flatnonzero(column_blocks == column)
                inside = np.ix_(rows[at_rows] % self.block_rows, columns[at_columns] % self.block_rows)
                mirrored = self.symmetric and column > row
                tile = self.tile(int(column), int(row)).T if mirrored else self.tile(int(row), int(column))
                values[np.ix_(at_rows, at_columns)] = tile[inside]
        return values

    def _keep(self, key: tuple[int, int], values: Array) -> None:
        self._cache[key] = values
        self._cached_bytes += values.nbytes
        while self._cached_bytes > self._cache_bytes and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
