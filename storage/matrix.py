"""Kernel matrices as tiles: the interface to all of them, whether they are stored, derived, transformed or transposed."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np

from ntkpipe.configs.errors import ChunkNotReadyError
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.committed import Scratch
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.picking import Group, Groups, Picks, Positions, grouped

SHARED_TILES = 8
"""From so many tiles on a request is divided among threads."""

NAMED = 3
"""Blocks that a message names."""


class AbstractMatrix(ABC):
    """A kernel matrix between two splits, read tile by tile. Thread safe.

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
        """Return a tile, clipped to the matrix; of a symmetric one only for ``row >= column``. Nobody may write to it.

        Raises:
            ChunkNotReadyError: Something that is needed has not been committed yet.
            CorruptChunkError: Its bytes are damaged or gone.
        """

    @abstractmethod
    def part(self, row: int, column: int, rows: Picks, columns: Picks, scratch: Scratch) -> Array:
        """Return entries of a tile, as :meth:`tile` does, at all pairs of positions in it; always a copy.

        Args:
            row: Of tiles; of a symmetric matrix not less than ``column``.
            column: Of tiles.
            rows: In the tile.
            columns: In the tile.
            scratch: The thread's own.
        """

    @abstractmethod
    def task(self, row: int, column: int) -> str:
        """Return the id of the kernel task that writes what a tile is made of, on either side of the diagonal."""

    @abstractmethod
    def missing(self, tasks: Sequence[str]) -> list[str]:
        """Return those of some kernel tasks that are not committed, in order; looks again before it says so."""

    @abstractmethod
    def holds(self, row: int, column: int) -> bool:
        """Return whether nothing has to be read for a tile of committed tasks, on either side of the diagonal, now."""

    @abstractmethod
    def version(self, row: int, column: int) -> str:
        """Return a text that is another one whenever a tile, of any committed task, is: the checksums of what it is made of."""

    @property
    @abstractmethod
    def num_leaves(self) -> int:
        """How many stored tiles a tile is made of."""

    @property
    def tile_bytes(self) -> int:
        """What has to be read for a tile."""
        return self.block_rows**2 * self.dtype.itemsize * self.num_leaves

    @property
    def size(self) -> int:
        """N, of a square matrix."""
        assert self.shape[0] == self.shape[1]
        return self.shape[0]

    def any_tile(self, row: int, column: int) -> Array:
        """Return a tile on either side of the diagonal."""
        return self.tile(column, row).T if self.symmetric and column > row else self.tile(row, column)

    def any_part(self, row: int, column: int, rows: Picks, columns: Picks, scratch: Scratch) -> Array:
        """Return entries of a tile on either side of the diagonal."""
        if self.symmetric and column > row:
            return self.part(column, row, columns, rows, scratch).T
        return self.part(row, column, rows, columns, scratch)

    def span(self, block: int, axis: int = 0) -> slice:
        """Return the rows (columns, for axis 1) that a row (column) of tiles covers."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.shape[axis]))

    def diagonal(self) -> Array:
        """Return the (N,) diagonal of a square matrix."""
        return np.concatenate([np.diagonal(self.tile(i, i)) for i in range(num_chunks(self.size, self.block_rows))])

    def tiles(self, rows: Positions | None = None, columns: Positions | None = None) -> list[tuple[int, int]]:
        """Return in which tiles entries at all pairs of the given positions lie; of a symmetric matrix those it stores.

        Args:
            rows: None for all.
            columns: None for all.
        """
        row_blocks, column_blocks = self._blocks(rows, 0), self._blocks(columns, 1)
        return sorted(
            {
                (max(row, column), min(row, column)) if self.symmetric else (row, column)
                for row in row_blocks
                for column in column_blocks
            }
        )

    def num_tiles(self, rows: Positions | None = None, columns: Positions | None = None) -> int:
        """Return how many tiles those are."""
        row_blocks, column_blocks = self._blocks(rows, 0), self._blocks(columns, 1)
        # Of pairs of blocks that are both among the rows and among the columns, a symmetric matrix stores one of two.
        both = len(set(row_blocks).intersection(column_blocks)) if self.symmetric else 0
        return len(row_blocks) * len(column_blocks) - both * (both - 1) // 2

    def _blocks(self, positions: Positions | None, axis: int) -> Sequence[int]:
        if positions is None:
            return range(num_chunks(self.shape[axis], self.block_rows))
        # Counting small numbers is many times faster than finding different ones among any.
        found: list[int] = np.flatnonzero(np.bincount(positions // self.block_rows)).tolist()
        return found

    def read(self, rows: Positions, columns: Positions, *, missing_as_nan: bool = False, num_threads: int = 1) -> Array:
        """Return entries at all pairs of the given positions, (len(rows), len(columns)), each tile read once.

        Args:
            rows: In any order; some may be given several times.
            columns: Likewise.
            missing_as_nan: Entries that are not committed are NaN.
            num_threads: That read side by side where many tiles are needed.

        Raises:
            ChunkNotReadyError: Something is not committed; nothing has been read then.
        """
        row_groups, column_groups = (grouped(positions, self.block_rows) for positions in (rows, columns))
        pairs = [(row, column) for row in row_groups for column in column_groups]
        values = np.empty((len(rows), len(columns)), self.dtype)
        missing = self.require(((row.block, column.block) for row, column in pairs), missing_as_nan=missing_as_nan)
        if num_threads > 1 and len(pairs) >= SHARED_TILES:
            # Threads cost more than tiles that are held.
            at_hand = [self._is_at_hand(row.block, column.block, missing) for row, column in pairs]
            to_read = [pair for pair, is_at_hand in zip(pairs, at_hand, strict=True) if not is_at_hand]
            if len(to_read) >= SHARED_TILES:
                pairs = [pair for pair, is_at_hand in zip(pairs, at_hand, strict=True) if is_at_hand]
                parts = [to_read[first::num_threads] for first in range(num_threads)]
                with ThreadPoolExecutor(num_threads) as threads:
                    list(threads.map(lambda part: self._fill(values, part, missing), parts))
        self._fill(values, pairs, missing)
        return _restored(values, row_groups, column_groups)

    def require(self, tiles: Iterable[tuple[int, int]], *, missing_as_nan: bool = False) -> frozenset[str]:
        """Return which tasks of some tiles are not committed; refuse to go on without them unless that is wanted.

        Raises:
            ChunkNotReadyError: Names the first of them, and says how many there are.
        """
        tasks = sorted({self.task(row, column) for row, column in tiles})
        missing = self.missing(tasks)
        if missing and not missing_as_nan:
            first = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
            raise ChunkNotReadyError(
                f"{len(missing):,} of {len(tasks):,} blocks that are needed are not committed yet: kernel {first}. See "
                "`ntkpipe status`, and finish the run with `ntkpipe resume`; or ask for NaN in their place.",
                tasks=tuple(missing),
            )
        return frozenset(missing)

    def _is_at_hand(self, row: int, column: int, missing: frozenset[str]) -> bool:
        return (bool(missing) and self.task(row, column) in missing) or self.holds(row, column)

    def _fill(self, values: Array, pairs: Iterable[tuple[Group, Group]], missing: frozenset[str]) -> None:
        scratch = Scratch()
        for row, column in pairs:
            if missing and self.task(row.block, column.block) in missing:
                values[row.at, column.at] = np.nan
            else:
                part = self.any_part(row.block, column.block, row.inside, column.inside, scratch)
                values[row.at, column.at] = part


def _restored(values: Array, rows: Groups, columns: Groups) -> Array:
    """Return what was read in the order in which it was asked for."""
    if rows.restore is not None:
        values = values.take(rows.restore, axis=0)
    if columns.restore is not None:
        values = values.take(columns.restore, axis=1)
    return values


@final
class TransposedMatrix(AbstractMatrix):
    """A matrix whose rows are the columns of another one."""

    def __init__(self, matrix: AbstractMatrix) -> None:
        self._matrix = matrix
        self.shape = (matrix.shape[1], matrix.shape[0])
        self.block_rows = matrix.block_rows
        self.symmetric = False
        self.dtype = matrix.dtype

    @property
    def num_leaves(self) -> int:
        """As many as of the other one."""
        return self._matrix.num_leaves

    def tile(self, row: int, column: int) -> Array:
        """Return a view of the other one's."""
        return self._matrix.any_tile(column, row).T

    def part(self, row: int, column: int, rows: Picks, columns: Picks, scratch: Scratch) -> Array:
        """Take them from the other one."""
        return self._matrix.any_part(column, row, columns, rows, scratch).T

    def task(self, row: int, column: int) -> str:
        """Return the other one's."""
        return self._matrix.task(column, row)

    def missing(self, tasks: Sequence[str]) -> list[str]:
        """Ask the other one."""
        return self._matrix.missing(tasks)

    def holds(self, row: int, column: int) -> bool:
        """Ask the other one."""
        return self._matrix.holds(column, row)

    def version(self, row: int, column: int) -> str:
        """Return the other one's."""
        return self._matrix.version(column, row)
