"""Arrays that are larger than what a service gives at once, asked for in pieces."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from ntkpipe.configs.errors import NtkPipeError, TooLargeError
from ntkpipe.pipeline.query.names import Positions
from ntkpipe.storage.arrays import Array


@final
@dataclass(frozen=True, slots=True)
class TooLarge:
    """A service's answer to a request for more than it gives at once."""

    ratio: float
    """What was asked for over what is given."""
    error: NtkPipeError
    """To be raised by whoever cannot ask for less."""


Ask = Callable[[Positions, Positions | None], Array | TooLarge]
"""Asks for rows and columns, or for rows only."""

Piece = tuple[slice, slice]
"""Ranges of the rows and columns that are wanted."""


@final
class Pieces:
    """Asks for arrays, and remembers how large an answer may be. Thread safe.

    Whoever is told that it was too much asks for fewer rows, and of a single row for fewer columns. An array in pieces takes
    its own memory and that of one piece.
    """

    def __init__(self) -> None:
        self._most: dict[str, float] = {}

    def read(
        self, of: str, ask: Ask, rows: Positions, columns: Positions | None = None, *, axis: int = 0, width: int = 1
    ) -> Array:
        """Return an array.

        Args:
            of: What is asked; other things may have other limits.
            ask: Asks for some of it.
            rows: Samples.
            columns: Samples, if the array has an axis for them; it is the last one.
            axis: Of the rows.
            width: Rows and columns of the array per sample.

        Raises:
            NtkPipeError: The service refused, or a single entry is too much for it.
        """
        sizes = (len(rows), 1 if columns is None else len(columns))
        pending = deque([(slice(0, sizes[0]), slice(0, sizes[1]))])
        most = self._most.get(of)
        if most is not None and sizes[0] * sizes[1] > most:
            pending = deque(_parts(pending.popleft(), sizes[0] * sizes[1] / most, columns is not None))
        values: Array | None = None
        refused: tuple[int, NtkPipeError] | None = None
        while pending:
            piece = pending.popleft()
            found = ask(rows[piece[0]], None if columns is None else columns[piece[1]])
            if isinstance(found, TooLarge):
                parts = _parts(piece, found.ratio, columns is not None)
                if len(parts) == 1:
                    raise found.error
                refused = _num_cells(piece), found.error
                pending.extendleft(reversed(parts))
                continue
            if refused is not None:
                self._remember(of, *refused, found.size / _num_cells(piece))
                refused = None
            if not pending and values is None:
                return found
            if values is None:
                shape = list(found.shape)
                shape[axis] = sizes[0] * width
                if columns is not None:
                    shape[-1] = sizes[1] * width
                values = np.empty(shape, found.dtype)
            place: list[slice] = [slice(None)] * found.ndim
            place[axis] = slice(piece[0].start * width, piece[0].stop * width)
            if columns is not None:
                place[-1] = slice(piece[1].start * width, piece[1].stop * width)
            values[tuple(place)] = found
        assert values is not None
        return values

    def _remember(self, of: str, num_cells: int, error: NtkPipeError, values_per_cell: float) -> None:
        """Remember a limit of the answer's size. One of what has to be read for it depends on where the samples lie."""
        if isinstance(error, TooLargeError) and error.limit and error.asked == num_cells * values_per_cell:
            self._most[of] = error.limit / values_per_cell


def _num_cells(piece: Piece) -> int:
    rows, columns = piece
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _parts(piece: Piece, ratio: float, by_columns: bool) -> list[Piece]:
    """Divide a piece into ``ratio`` parts or more, in order: its rows, and its columns where it has one row."""
    rows, columns = piece
    wanted = max(2, math.ceil(ratio))
    if rows.stop - rows.start > 1:
        return [(part, columns) for part in _divided(rows, wanted)]
    if by_columns and columns.stop - columns.start > 1:
        return [(rows, part) for part in _divided(columns, wanted)]
    return [piece]


def _divided(span: slice, wanted: int) -> list[slice]:
    size = max(1, (span.stop - span.start) // wanted)
    return [slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)]
