"""A matrix of any size as a picture: the mean of the entries behind every pixel, in one pass over its tiles.

Rows and columns are drawn at places; a pixel is a square of places. With R the 0/1 matrix that has a one where a row of a
tile is drawn in a row of pixels, and C the same of columns, a tile T adds R T C^T to the sums of the picture. R and C have
one entry per column, so that both products are additions of whole rows of memory.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
from scipy import sparse

from ntkpipe.pipeline.query.names import Positions
from ntkpipe.storage.committed import Scratch
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.picking import Picks, consecutive

Floats = npt.NDArray[np.float32]
Advance = Callable[[], None]
"""Called after every tile; raises when the picture is not wanted any more."""

NOT_DRAWN = -1

PANEL = 64
"""Rows that are transposed at a time: as many as stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Where the rows, or the columns, of a matrix are drawn."""

    pixels_N: Positions
    """(N,) the row of pixels of every row of the matrix; :data:`NOT_DRAWN` for those that are not in the picture."""
    num_pixels: int

    @classmethod
    def of(cls, positions: Positions, size: int, entries: int) -> "Axis":
        """Return the axis that draws some rows of a matrix one after the other, so many in a pixel.

        Args:
            positions: (M,) rows of the matrix in the order in which they are drawn.
            size: N, of all rows.
            entries: Rows in a pixel.
        """
        pixels_N = np.full(size, NOT_DRAWN, dtype=np.int64)
        pixels_N[positions] = np.arange(len(positions)) // entries
        return cls(pixels_N, num_chunks(len(positions), entries))

    def counts(self) -> Floats:
        """Return how many rows of the matrix are drawn in every row of pixels."""
        return np.bincount(self.pixels_N[self.pixels_N >= 0], minlength=self.num_pixels).astype(np.float32)

    def blocks(self, block_rows: int) -> "list[_Part]":
        """Return the parts of the axis that fall into blocks of rows, without those that hold nothing drawn."""
        parts = []
        for block in range(num_chunks(len(self.pixels_N), block_rows)):
            pixels = self.pixels_N[block * block_rows : (block + 1) * block_rows]
            drawn = np.flatnonzero(pixels >= 0)
            if len(drawn):
                touched, which = np.unique(pixels[drawn], return_inverse=True)
                places = np.arange(len(drawn))
                ones = np.ones(len(drawn), np.float32)
                adder = sparse.csr_array((ones, (which, places)), shape=(len(touched), len(drawn)))
                parts.append(_Part(block, consecutive(drawn), len(drawn) == len(pixels), touched, adder))
        return parts


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the entries behind every pixel, and how many those are; entries that are not committed are left out."""

    values: Floats
    """(R, C)."""
    counts: Floats
    """(R, C)."""
    num_missing_tiles: int = 0
    num_missing_entries: int = 0

    def means(self) -> Floats:
        """Return the mean of every pixel, NaN where there is no entry."""
        empty = np.full_like(self.values, np.nan)
        return np.divide(self.values, self.counts, out=empty, where=self.counts > 0)

    def halved(self) -> "Sums":
        """Return the sums of squares of two by two pixels; those at the lower and right edge may hold fewer."""
        return Sums(_halved(self.values), _halved(self.counts))


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a block that are drawn."""

    block: int
    picks: Picks
    """Which of its rows."""
    is_whole: bool
    """Whether those are all of them."""
    touched: Positions
    """Rows of pixels."""
    adder: Any
    """(touched, drawn rows): a one where a row is drawn in a row of pixels."""

    @property
    def counts(self) -> Floats:
        return np.asarray(self.adder.sum(axis=1), dtype=np.float32)


def reduce_matrix(matrix: AbstractMatrix, rows: Axis, columns: Axis, advance: Advance, *, threads: int = 1) -> Sums:
    """Sum the entries behind every pixel. Every tile that has a drawn entry is read once.

    Sums are in single precision and do not depend on the number of threads. Memory is O(pixels), and for each thread a
    tile and one strip of pixel rows by the columns of a tile.

    Args:
        matrix: To be drawn.
        rows: Where its rows are drawn.
        columns: Where its columns are drawn; the same object as ``rows`` where both have one order, so that of a
            symmetric matrix only one triangle is read.
        advance: Called after every tile, by any thread.
        threads: That read and add side by side.

    Raises:
        CorruptChunkError: A tile is damaged.
    """
    row_parts = rows.blocks(matrix.block_rows)
    column_parts = row_parts if columns is rows else columns.blocks(matrix.block_rows)
    triangle = matrix.symmetric and columns is rows
    shares = _shares(row_parts, column_parts, triangle)
    transposed = np.zeros((columns.num_pixels, rows.num_pixels), np.float32)
    pass_ = _Pass(matrix, row_parts, column_parts, rows.num_pixels, shares, advance)
    for index, added in _in_order(pass_.column, column_parts, threads):
        transposed[consecutive(column_parts[index].touched)] += added
    counts = np.outer(rows.counts(), columns.counts())
    missing = pass_.missing
    if missing.any():
        lost = _counts(row_parts, rows.num_pixels).T @ missing @ _counts(column_parts, columns.num_pixels)
        counts -= lost + lost.T if triangle else lost
    values = transposed + transposed.T if triangle else np.ascontiguousarray(transposed.T)
    entries = int(len(rows.pixels_N[rows.pixels_N >= 0]) * len(columns.pixels_N[columns.pixels_N >= 0]))
    num_missing = entries - int(counts.sum(dtype=np.float64)) if missing.any() else 0
    return Sums(values, counts, int(np.count_nonzero(missing)), num_missing)


def _shares(row_parts: list[_Part], column_parts: list[_Part], triangle: bool) -> Floats:
    """Return how much of each tile is added: of one triangle half of the diagonal, as the sums are mirrored at the end."""
    if not triangle:
        return np.ones((len(row_parts), len(column_parts)), np.float32)
    shares = np.tri(len(row_parts), dtype=np.float32)
    np.fill_diagonal(shares, 0.5)
    return shares


@final
class _Pass:
    """One pass over the tiles.

    Attributes:
        missing: (row parts, column parts) the share of each tile that should have been added, but is not committed.
    """

    def __init__(
        self,
        matrix: AbstractMatrix,
        row_parts: list[_Part],
        column_parts: list[_Part],
        num_pixels: int,
        shares: Floats,
        advance: Advance,
    ) -> None:
        self.missing = np.zeros_like(shares)
        self._matrix = matrix
        self._row_parts = row_parts
        self._num_pixels = num_pixels
        self._shares = shares
        self._advance = advance
        self._absent = frozenset(matrix.missing(self._tasks(row_parts, column_parts)))

    def _tasks(self, row_parts: list[_Part], column_parts: list[_Part]) -> list[str]:
        tasks = (
            self._matrix.task(rows.block, columns.block)
            for at, rows in enumerate(row_parts)
            for index, columns in enumerate(column_parts)
            if self._shares[at, index]
        )
        return list(dict.fromkeys(tasks))

    def column(self, index: int, part: _Part) -> Floats:
        """Return what the tiles below each other add to the pixels that their columns touch, (touched, pixels)."""
        strip = np.zeros((self._num_pixels, part.adder.shape[1]), np.float32)
        scratch = Scratch()
        for at, rows in enumerate(self._row_parts):
            share = self._shares[at, index]
            if not share:
                continue
            if self._absent and self._matrix.task(rows.block, part.block) in self._absent:
                self.missing[at, index] = share
            else:
                added = rows.adder @ self._entries(rows, part, scratch)
                strip[consecutive(rows.touched)] += added if share == 1 else added * share
            self._advance()
        return _reduced(strip, part)

    def _entries(self, rows: _Part, columns: _Part, scratch: Scratch) -> Floats:
        if rows.is_whole and columns.is_whole:
            entries = self._matrix.any_tile(rows.block, columns.block)
        else:
            entries = self._matrix.any_part(rows.block, columns.block, rows.picks, columns.picks, scratch)
        return np.ascontiguousarray(entries, dtype=np.float32)


def _reduced(strip: Floats, part: _Part) -> Floats:
    """Return the sums of a strip's columns that are drawn in one column of pixels, (touched, pixels)."""
    added = np.empty((len(part.touched), len(strip)), np.float32)
    for start in range(0, len(strip), PANEL):
        added[:, start : start + PANEL] = part.adder @ np.ascontiguousarray(strip[start : start + PANEL].T)
    return added


def _in_order(work: Callable[[int, _Part], Floats], parts: list[_Part], threads: int) -> Iterator[tuple[int, Floats]]:
    """Yield results in the order of the parts, so that sums do not depend on who was first; few are under way at a time."""
    if threads == 1 or len(parts) == 1:
        for index, part in enumerate(parts):
            yield index, work(index, part)
        return
    waiting: deque[tuple[int, Future[Floats]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="picture") as pool:
        try:
            for index, part in enumerate(parts):
                waiting.append((index, pool.submit(work, index, part)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _counts(parts: list[_Part], num_pixels: int) -> Floats:
    """Return (parts, pixels) how many drawn rows of each part fall into each row of pixels."""
    counts = np.zeros((len(parts), num_pixels), np.float32)
    for index, part in enumerate(parts):
        counts[index, part.touched] = part.counts
    return counts


def _halved(values: Floats) -> Floats:
    rows, columns = (num_chunks(size, 2) for size in values.shape)
    even = np.pad(values, ((0, 2 * rows - values.shape[0]), (0, 2 * columns - values.shape[1])))
    halved: Floats = even.reshape(rows, 2, columns, 2).sum(axis=(1, 3))
    return halved
