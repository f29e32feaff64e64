"""The largest, or smallest, entries of every row of a matrix that is read a rectangle at a time."""

from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Positions = npt.NDArray[np.int64]

Read = Callable[[Positions, Positions], Array]
"""(rows, columns) to the entries at all pairs of them."""

HELD_VALUES = 4 * 2**20
"""Entries that are read at a time, unless a single tile has more."""

FEW = 8
"""Entries per neighbour that are sorted as they are."""

NOBODY = -1
"""The position of a neighbour that is not there."""


@final
class Leaders:
    """For each of M rows the k columns with the largest entries so far; of equal ones those that come first.

    What comes out does not depend on the order in which entries are added. Memory is O(M k).
    """

    def __init__(self, num_rows: int, k: int, *, opposed: bool = False) -> None:
        self._positions = np.full((num_rows, k), NOBODY, dtype=np.int64)
        self._keys = np.full((num_rows, k), -np.inf)
        self._opposed = opposed

    @property
    def positions(self) -> Positions:
        """(M, k) columns, the largest entry first; -1 where a row has fewer."""
        return self._positions

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """(M, k) entries, NaN where a row has fewer."""
        values = -self._keys if self._opposed else self._keys.copy()
        values[self._positions == NOBODY] = np.nan
        return values

    def add(self, rows: Positions, columns: Positions, values: Array, own: Array | None = None) -> None:
        """Take more entries into account.

        Args:
            rows: (R,) from 0 to M - 1, each at most once.
            columns: (B,), none of which these rows have seen.
            values: (R, B); NaN is never among the largest, nor is what is infinitely far from it.
            own: (R, B), which of them do not count.
        """
        k = self._keys.shape[1]
        keys = -values if self._opposed else values
        if np.isnan(keys.min(initial=0.0)):
            keys = np.where(np.isnan(keys), -np.inf, keys)
        if own is not None and own.any():
            keys = np.where(own, -np.inf, keys)
        # Almost all entries are below the worst of those that are kept: only the others are sorted.
        good = (keys >= self._keys[rows, -1:]) & (keys > -np.inf)
        if len(columns) > k and np.count_nonzero(good) > FEW * k * len(rows):
            good &= keys >= np.partition(keys, -k, axis=1)[:, -k, np.newaxis]
        new_rows, new_columns = np.nonzero(good)
        old_rows, old_slots = np.nonzero(self._positions[rows] != NOBODY)
        all_rows = np.concatenate([old_rows, new_rows])
        all_positions = np.concatenate([self._positions[rows[old_rows], old_slots], columns[new_columns]])
        all_keys = np.concatenate([self._keys[rows[old_rows], old_slots], keys[new_rows, new_columns]])
        order = np.lexsort((all_positions, -all_keys, all_rows))
        all_rows = all_rows[order]
        ranks = np.arange(len(order)) - np.searchsorted(all_rows, all_rows)
        first = ranks < k
        at = rows[all_rows[first]], ranks[first]
        self._positions[at], self._keys[at] = all_positions[order[first]], all_keys[order[first]]


def rectangles(
    rows: Positions, columns: Positions, block_rows: int, held_values: int
) -> Iterator[tuple[Positions, Positions]]:
    """Yield rectangles that cover all pairs of rows and columns, none of which cuts a tile.

    A tile that is read for a rectangle is read for no other one. A rectangle has at most ``held_values`` entries, or
    covers one tile.

    Args:
        rows: In any order.
        columns: Ascending.
        block_rows: Rows and columns of a tile.
        held_values: Entries of a rectangle.

    Yields:
        Indices into ``rows``, and columns.
    """
    order = np.argsort(rows, kind="stable")
    for group in _runs(rows[order] // block_rows, max(1, held_values // block_rows)):
        for part in _runs(columns // block_rows, max(1, held_values // len(order[group]))):
            yield order[group], columns[part]


def _runs(blocks: Positions, at_most: int) -> Iterator[slice]:
    """Yield slices of so many items, or of one block: all items of a block are in one of them."""
    ends = [*np.flatnonzero(np.diff(blocks)) + 1, len(blocks)] if len(blocks) else []
    start = last = 0
    for end in ends:
        if end - start > at_most and last > start:
            yield slice(start, last)
            start = last
        last = int(end)
    if last > start:
        yield slice(start, last)


def leaders(
    read: Read,
    rows: Positions,
    columns: Positions,
    k: int,
    *,
    block_rows: int,
    opposed: bool = False,
    own: bool = False,
) -> Leaders:
    """Return the k columns with the largest entries of every row; exact, ties by position, each tile read once.

    Memory is O(M k), and ``HELD_VALUES`` entries or one tile.

    Args:
        read: Returns entries of the matrix.
        rows: (M,), in any order.
        columns: Ascending; the others do not count.
        k: How many; fewer are found where there are not so many.
        block_rows: Rows and columns of a tile of the matrix.
        opposed: The smallest entries are wanted.
        own: Rows and columns are the same samples, and a sample is not its own neighbour.
    """
    found = Leaders(len(rows), max(0, min(k, len(columns))), opposed=opposed)
    if not found.positions.size:
        return found
    for at, part in rectangles(rows, columns, block_rows, HELD_VALUES):
        same = rows[at, np.newaxis] == part if own else None
        found.add(at, part, read(rows[at], part), same)
    return found
