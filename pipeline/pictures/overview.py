"""A kernel matrix that can be drawn: its orders, the means of its coarser levels, and its tiles down to single entries."""

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.pipeline.pictures.colours import DIVERGING, SEQUENTIAL
from ntkpipe.pipeline.pictures.orders import Order
from ntkpipe.pipeline.pictures.progress import Progress
from ntkpipe.pipeline.pictures.pyramid import TILE_PIXELS, Pyramid
from ntkpipe.pipeline.pictures.reduction import Axis, Floats, reduce_matrix
from ntkpipe.pipeline.query.names import Positions
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.matrix import AbstractMatrix

QUANTILES: Final = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
QUANTILE_PIXELS: Final = 2**20
"""From about so many, evenly spaced, quantiles are taken; the least and the largest from all."""
LOW: Final = 0.01
HIGH: Final = 0.99
"""The quantiles that have the first and the last colour, so that a few extreme entries do not take all colours."""

DIVERGES: Final = 0.1
"""How much of the range has to lie on the smaller side of zero for zero to be its middle."""


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What pictures of one matrix may cost."""

    max_pixels: int = 4096
    """Per side of the finest level that is kept in memory, in single precision."""
    max_read_bytes: int = 64 * 2**30
    """Of all chunks that may be read to make one, to order its samples, and for means; and to compare two matrices."""
    max_tile_bytes: int = 256 * 2**20
    """That may be read to draw one tile from entries."""
    max_pixel_bytes: int = 32 * 2**20
    """That may be read to tell what one pixel is."""
    threads: int = 2
    """That read side by side."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The means behind a tile's pixels."""

    means: Floats
    """(R, C) at most :data:`TILE_PIXELS` each."""
    entries: int
    """The side of the square of entries that a mean is taken over."""
    exact: bool
    """Whether the pixels are those of the level that was asked for; else they are those of a coarser one, scaled up."""


@final
class Overview:
    """A matrix in some order. Safe for many threads. Memory is O(pixels of the finest level that is kept).

    Args:
        matrix: To be drawn.
        rows: Order of its rows.
        columns: Order of its columns; the same object as ``rows`` where both have one order.
        limits: Of what it may cost.
        progress: Is told of every tile that was read.
        streamed: The same matrix for the one pass over all of it, when its tiles need not be held.

    Attributes:
        rows: Order of its rows.
        columns: Order of its columns.
        pyramid: Its levels.
        base: The finest level that is in memory; those below it are read from entries.
        version: Digest of what is drawn; equal ones mean equal pictures.
        seconds: That it took.
        num_missing_entries: Entries that were not committed when it was made.
        nbytes: Of memory.
        quantiles: Of the means of the finest level in memory, by share; empty where nothing is committed.
    """

    def __init__(
        self,
        matrix: AbstractMatrix,
        rows: Order,
        columns: Order,
        limits: PictureLimits,
        progress: Progress,
        *,
        streamed: AbstractMatrix | None = None,
    ) -> None:
        started = time.monotonic()
        self.rows = rows
        self.columns = columns
        self.pyramid = Pyramid(len(rows), len(columns))
        self.base = self.pyramid.base_level(limits.max_pixels)
        self._matrix = matrix
        self._limits = limits
        entries = self.pyramid.entries(self.base)
        row_axis = Axis.of(rows.positions, matrix.shape[0], entries)
        column_axis = row_axis if columns is rows else Axis.of(columns.positions, matrix.shape[1], entries)
        progress.expect(num_tiles(matrix, same=columns is rows))
        sums = reduce_matrix(streamed or matrix, row_axis, column_axis, progress.advance, threads=limits.threads)
        self.num_missing_entries = sums.num_missing_entries
        self._levels = [sums.means()]
        while len(self._levels) <= self.base:
            sums = sums.halved()
            self._levels.append(sums.means())
        self.quantiles = _quantiles(self._levels[0])
        self.version = self._digest()
        self.nbytes = sum(level.nbytes for level in self._levels) + rows.positions.nbytes + columns.positions.nbytes
        self._description = self._describe()
        self.seconds = time.monotonic() - started

    @property
    def range(self) -> tuple[float, float]:
        """The numbers that have the first and the last colour if nothing else is asked for."""
        if not self.quantiles:
            return 0.0, 1.0
        low, high = self.quantiles[LOW], self.quantiles[HIGH]
        if high > low:
            return low, high
        low, high = self.quantiles[0.0], self.quantiles[1.0]
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    @property
    def palette(self) -> str:
        """The map that suits it: one with a middle if there are numbers on both sides of zero."""
        low, high = self.range
        return DIVERGING if min(-low, high) > DIVERGES * max(-low, high) else SEQUENTIAL

    def is_exact(self, level: int) -> bool:
        """Return whether every tile of a level is drawn from the entries that belong to it."""
        if level <= self.base:
            return True
        entries = self.pyramid.entries(level)
        blocks = [
            _most_blocks(order.positions, TILE_PIXELS * entries, self._matrix.block_rows)
            for order in (self.rows, self.columns)
        ]
        return blocks[0] * blocks[1] * self._matrix.tile_bytes <= self._limits.max_tile_bytes

    def draw(self, level: int, row: int, column: int) -> Drawn:
        """Return the pixels of a tile; reads entries where they are finer than what is in memory and cheap enough.

        Raises:
            NotFoundError: There is no such tile.
            CorruptChunkError: A block that is read is damaged.
        """
        places = self.pyramid.places(level, row, column)
        entries = self.pyramid.entries(level)
        if level <= self.base:
            means = self._levels[self.base - level]
            at_rows, at_columns = (slice(at.start // entries, num_chunks(at.stop, entries)) for at in places)
            return Drawn(means[at_rows, at_columns], entries, exact=True)
        rows, columns = self.rows.positions[places[0]], self.columns.positions[places[1]]
        if self._bytes(rows, columns) <= self._limits.max_tile_bytes:
            return Drawn(self._from_entries(rows, columns, entries), entries, exact=True)
        coarse = self.pyramid.entries(self.base)
        of_rows, of_columns = (np.arange(at.start, at.stop, entries) // coarse for at in places)
        return Drawn(self._levels[0][np.ix_(of_rows, of_columns)], coarse, exact=False)

    def pixel(self, level: int, row: int, column: int) -> tuple[float, int, int]:
        """Return the mean behind the pixel of a level that draws a place, and how many rows and columns it spans.

        Raises:
            NotFoundError: The place, or the level, is outside of the picture.
            CorruptChunkError: A block that is read is damaged.
        """
        self.pyramid.check_level(level)
        for place, size, what in ((row, self.pyramid.rows, "row"), (column, self.pyramid.columns, "column")):
            if not 0 <= place < size:
                raise NotFoundError(
                    f"{what} {place} is outside of a matrix of {self.pyramid.rows} x {self.pyramid.columns}."
                )
        entries = self.pyramid.entries(level)
        if level > self.base:
            rows, columns = (
                self._positions_at(self.rows, row, entries),
                self._positions_at(self.columns, column, entries),
            )
            if self._bytes(rows, columns) <= self._limits.max_pixel_bytes:
                return float(self._from_entries(rows, columns, entries)[0, 0]), len(rows), len(columns)
            level, entries = self.base, self.pyramid.entries(self.base)
        rows, columns = self._positions_at(self.rows, row, entries), self._positions_at(self.columns, column, entries)
        mean = self._levels[self.base - level][row // entries, column // entries]
        return float(mean), len(rows), len(columns)

    def describe(self) -> dict[str, Any]:
        """Return what a page has to know to show it."""
        return dict(self._description)

    def _describe(self) -> dict[str, Any]:
        levels = range(self.pyramid.num_levels)
        exact = [self.is_exact(level) for level in levels]
        low, high = self.range
        return {
            "rows": self.pyramid.rows,
            "columns": self.pyramid.columns,
            "levels": len(levels),
            "tile": TILE_PIXELS,
            "low": low,
            "high": high,
            "quantiles": {str(share): value for share, value in self.quantiles.items()},
            "palette": self.palette,
            "groups": [_group(group) for group in self.rows.groups],
            "column_groups": [_group(group) for group in self.columns.groups],
            "exact_from": levels[-1] if exact[-1] else None,
            "finest": max(level for level in levels if exact[level]),
            "coarsest": 0,
            "scales": [
                {"level": level, "entries": self.pyramid.entries(level), "exact": exact[level]} for level in levels
            ],
            "missing": self.num_missing_entries,
            "incomplete": self.num_missing_entries > 0,
            "version": self.version,
        }

    def _positions_at(self, order: Order, place: int, entries: int) -> Positions:
        first = place // entries * entries
        return order.positions[first : first + entries]

    def _from_entries(self, rows: Positions, columns: Positions, entries: int) -> Floats:
        axes = [
            Axis.of(positions, size, entries)
            for positions, size in zip((rows, columns), self._matrix.shape, strict=True)
        ]
        return reduce_matrix(self._matrix, axes[0], axes[1], lambda: None).means()

    def _bytes(self, rows: Positions, columns: Positions) -> int:
        """Return how much has to be read to see entries."""
        blocks = [len(np.unique(at // self._matrix.block_rows)) for at in (rows, columns)]
        return blocks[0] * blocks[1] * self._matrix.tile_bytes

    def _digest(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        for array in (self._levels[0], self.rows.positions, self.columns.positions):
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()


def num_tiles(matrix: AbstractMatrix, *, same: bool) -> int:
    """Return how many tiles a pass over a matrix reads; ``same``: rows and columns are drawn in one order."""
    rows, columns = (num_chunks(size, matrix.block_rows) for size in matrix.shape)
    return rows * (rows + 1) // 2 if same and matrix.symmetric else rows * columns


def _most_blocks(positions: Positions, places: int, block_rows: int) -> int:
    """Return how many blocks of rows a run of places, such as those of a tile, touches at the most."""
    blocks = positions // block_rows
    return max((len(np.unique(blocks[start : start + places])) for start in range(0, len(blocks), places)), default=1)


def _quantiles(means: Floats) -> dict[float, float]:
    finite = means[np.isfinite(means)]
    if not len(finite):
        return {}
    step = num_chunks(len(finite), QUANTILE_PIXELS)
    # No divisor of the number of pixels in a row, so that not always the same columns are looked at.
    values = np.quantile(finite[:: step + (step > 1 and means.shape[1] % step == 0)], QUANTILES)
    values[0], values[-1] = finite.min(), finite.max()
    return {share: float(value) for share, value in zip(QUANTILES, values, strict=True)}


def _group(group: Any) -> dict[str, Any]:
    return {"label": group.label, "start": group.start, "stop": group.stop}
