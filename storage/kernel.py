"""Kernel matrices as tiles: the interface to all of them, and those that are stored."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Final, final

import numpy as np
import numpy.typing as npt

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.committed import read_committed
from ntkpipe.storage.grid import Block, num_chunks, pair_name, shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Geometry, KernelGeometry

KERNEL_STAGE: Final = "kernel"
Positions = npt.NDArray[np.int64]


class AbstractMatrix(ABC):
    """A kernel matrix between two splits, read tile by tile.

    Attributes:
        shape: (N, M); N C and M C for a kernel of (sample, output) pairs.
        block_rows: Rows and columns of a tile.
        symmetric: Whether it is equal to its transpose; tiles above the diagonal are then those below it.
        dtype: Of the entries.
    """

    shape: tuple[int, int]
    block_rows: int
    symmetric: bool
    dtype: "np.dtype[np.floating]"

    @abstractmethod
    def tile(self, row: int, column: int) -> Array:
        """Return a tile, clipped to the matrix; of a symmetric one only for ``row >= column``.

        Raises:
            ChunkNotReadyError: Something that is needed has not been committed yet.
            CorruptChunkError: Its bytes are damaged or gone.
        """

    @property
    def size(self) -> int:
        """N, of a square matrix."""
        assert self.shape[0] == self.shape[1]
        return self.shape[0]

    def any_tile(self, row: int, column: int) -> Array:
        """Return a tile on either side of the diagonal."""
        return self.tile(column, row).T if self.symmetric and column > row else self.tile(row, column)

    def span(self, block: int, axis: int = 0) -> slice:
        """Return the rows (columns, for axis 1) that a row (column) of tiles covers."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.shape[axis]))

    def diagonal(self) -> Array:
        """Return the (N,) diagonal of a square matrix."""
        return np.concatenate([np.diagonal(self.tile(i, i)) for i in range(num_chunks(self.size, self.block_rows))])

    def read(self, rows: Positions, columns: Positions) -> Array:
        """Return entries at all pairs of the given positions, (len(rows), len(columns)), each tile read once."""
        values = np.empty((len(rows), len(columns)), self.dtype)
        row_blocks, column_blocks = rows // self.block_rows, columns // self.block_rows
        for row in np.unique(row_blocks):
            for column in np.unique(column_blocks):
                at_rows, at_columns = np.flatnonzero(row_blocks == row), np.flatnonzero(column_blocks == column)
                inside = np.ix_(rows[at_rows] % self.block_rows, columns[at_columns] % self.block_rows)
                values[np.ix_(at_rows, at_columns)] = self.any_tile(int(row), int(column))[inside]
        return values


@final
class StoredMatrix(AbstractMatrix):
    """A stored kernel matrix, or one of its components. Holds at most ``cache_bytes`` of decoded tiles."""

    def __init__(
        self,
        chunks: ChunkStore,
        ledger: Ledger,
        geometry: Geometry,
        kernel: KernelGeometry,
        row_split: str,
        column_split: str,
        *,
        member: int | None = None,
        group: int | None = None,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        pair = pair_name(row_split, column_split)
        self._chunks = chunks
        self._ledger = ledger
        self._splits = (row_split, column_split)
        self._path = layout.kernel(kernel.name, pair) if group is None else layout.component(kernel.name, pair)
        self._prefix = tuple(index for index in (member, group) if index is not None)
        self._cache: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._samples = (geometry.splits[row_split].num_samples, geometry.splits[column_split].num_samples)
        self._sample_rows = geometry.block_rows
        self.shape = (self._samples[0] * kernel.width, self._samples[1] * kernel.width)
        self.block_rows = geometry.block_rows * kernel.width
        self.symmetric = kernel.symmetric and row_split == column_split
        self.dtype = np.dtype(geometry.dtype)

    def tile(self, row: int, column: int) -> Array:
        """Read a chunk, if the task that wrote it is committed."""
        assert row >= column or not self.symmetric
        cached = self._cache.get((row, column))
        if cached is not None:
            self._cache.move_to_end((row, column))
            return cached
        position, task = (*self._prefix, row, column), self._block(row, column).task
        chunk = read_committed(self._chunks, self._ledger, KERNEL_STAGE, task, self._path, position)
        values: Array = chunk[(0,) * len(self._prefix)]
        self._keep((row, column), values)
        return values

    def _block(self, row: int, column: int) -> Block:
        """Return the block whose task writes a tile; between a split and itself it writes both sides of the diagonal."""
        if self._splits[0] == self._splits[1]:
            row, column = max(row, column), min(row, column)
        rows, columns = (
            shard_at(split, index, size, self._sample_rows)
            for split, index, size in zip(self._splits, (row, column), self._samples, strict=True)
        )
        return Block(rows, columns)

    def _keep(self, key: tuple[int, int], values: Array) -> None:
        self._cache[key] = values
        self._cached_bytes += values.nbytes
        while self._cached_bytes > self._cache_bytes and self._cache:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.nbytes
