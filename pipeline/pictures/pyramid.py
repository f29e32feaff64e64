"""The levels of a picture: tiles of 256 by 256 pixels, each level with twice as many pixels per side as the one before.

At level l a pixel is a square of 2^(L - 1 - l) entries, L the number of levels: level 0 shows the whole matrix in one tile,
and a pixel of the last level is one entry.
"""

from dataclasses import dataclass
from typing import Final

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.storage.grid import num_chunks

TILE_PIXELS: Final = 256
"""Rows and columns of a tile."""


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of a matrix of some size."""

    rows: int
    """Of the matrix."""
    columns: int
    """Of the matrix."""

    @property
    def num_levels(self) -> int:
        """L."""
        return max(0, (num_chunks(max(self.rows, self.columns), TILE_PIXELS) - 1).bit_length()) + 1

    def entries(self, level: int) -> int:
        """Return how many entries of a row are in a pixel."""
        return 1 << (self.num_levels - 1 - level)

    def level_of(self, entries: int) -> int:
        """Return the level whose pixels have so many entries of a row."""
        return self.num_levels - entries.bit_length()

    def base_level(self, max_pixels: int) -> int:
        """Return the last level that has at most so many pixels per side."""
        level = self.num_levels - 1
        while level > 0 and num_chunks(max(self.rows, self.columns), self.entries(level)) > max_pixels:
            level -= 1
        return level

    def check_level(self, level: int) -> None:
        """Refuse a level that the picture does not have.

        Raises:
            NotFoundError: There is no such level.
        """
        if not 0 <= level < self.num_levels:
            raise NotFoundError(f"there is no level {level}; the picture has the levels 0 to {self.num_levels - 1}.")

    def places(self, level: int, row: int, column: int) -> tuple[slice, slice]:
        """Return the rows and columns, in drawn order, that a tile shows, clipped to the matrix.

        Raises:
            NotFoundError: There is no such tile.
        """
        self.check_level(level)
        step = TILE_PIXELS * self.entries(level)
        tiles = num_chunks(self.rows, step), num_chunks(self.columns, step)
        if not (0 <= row < tiles[0] and 0 <= column < tiles[1]):
            raise NotFoundError(f"level {level} has {tiles[0]} x {tiles[1]} tiles; there is no tile {row}, {column}.")
        return (
            slice(row * step, min((row + 1) * step, self.rows)),
            slice(column * step, min((column + 1) * step, self.columns)),
        )
