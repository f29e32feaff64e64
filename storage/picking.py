"""Taking entries at all pairs of some rows and columns out of matrices that are cut into tiles."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ntkpipe.storage.arrays import Array

Positions = npt.NDArray[np.int64]

Picks = Positions | slice
"""Which rows or columns of a tile: any, or consecutive ones."""


@dataclass(frozen=True, slots=True)
class Group:
    """Wanted positions that lie in one row, or column, of tiles."""

    block: int
    inside: Picks
    """Where they lie in it."""
    at: slice
    """Where they are to be found among all that are wanted, in the order of :class:`Groups`."""

    @property
    def num(self) -> int:
        """How many."""
        num: int = self.at.stop - self.at.start
        return num


@dataclass(frozen=True, slots=True)
class Groups:
    """Wanted positions by the row, or column, of tiles in which they lie."""

    groups: tuple[Group, ...]
    restore: Positions | None
    """Where each wanted position is to be found in the order of the groups; None for the same order."""

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)


def grouped(positions: Positions, block_rows: int) -> Groups:
    """Return positions by tile; time and memory are O(positions)."""
    if not len(positions):
        return Groups((), None)
    blocks, restore = positions // block_rows, None
    steps = np.diff(blocks)
    if (steps < 0).any():
        order = np.argsort(blocks, kind="stable")
        restore = np.empty_like(order)
        restore[order] = np.arange(len(order))
        positions, blocks = positions[order], blocks[order]
        steps = np.diff(blocks)
    cuts = [0, *(np.flatnonzero(steps) + 1).tolist(), len(positions)]
    groups = []
    for start, stop in pairwise(cuts):
        block = int(blocks[start])
        groups.append(Group(block, consecutive(positions[start:stop] - block * block_rows), slice(start, stop)))
    return Groups(tuple(groups), restore)


def consecutive(positions: Positions) -> Picks:
    """Return positions as a slice where each is one behind the one before it."""
    first = int(positions[0])
    if int(positions[-1]) - first == len(positions) - 1 and bool((np.diff(positions) == 1).all()):
        return slice(first, first + len(positions))
    return positions


def picked(values_RC: Array, rows: Picks, columns: Picks) -> Array:
    """Return entries at all pairs of rows and columns; always a copy."""
    if isinstance(rows, slice):
        part = values_RC[rows]
        return part[:, columns].copy() if isinstance(columns, slice) else part.take(columns, axis=1)
    if isinstance(columns, slice):
        return values_RC[:, columns].take(rows, axis=0)
    if not values_RC.flags.c_contiguous:
        return np.ascontiguousarray(values_RC[np.ix_(rows, columns)])
    # Several times faster than indexing by two arrays.
    entries: Array = values_RC.reshape(-1).take(rows[:, np.newaxis] * values_RC.shape[1] + columns)
    return entries
