"""In which order the samples of a split are drawn."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.names import Positions
from ntkpipe.pipeline.query.selection import rows_of_samples
from ntkpipe.storage.arrays import Array

OrderName = Literal["stored", "id", "class", "cluster"]
"""``stored``: as they are. ``id``: by name, numbers in names by their value. ``class``: by label, then as stored.
``cluster``: samples that the kernel finds alike are neighbours."""

_DIGITS: Final = re.compile("([0-9]+)")

ORDERS: Final[tuple[OrderName, ...]] = ("stored", "id", "class", "cluster")


@dataclass(frozen=True, slots=True)
class Group:
    """Samples that belong together and are drawn side by side."""

    label: str
    start: int
    """The first place that belongs to it."""
    stop: int
    """The first place behind it."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order of the samples of a split."""

    positions: Positions
    """(N,) the position in the split of the sample at each place; every position once."""
    groups: tuple[Group, ...] = ()
    """Cover all places where there are any."""

    def __len__(self) -> int:
        return len(self.positions)

    def of_entries(self, width: int) -> "Order":
        """Return the order of the rows of a matrix that has so many rows for each sample."""
        if width == 1:
            return self
        rows = rows_of_samples(self.positions, width)
        groups = tuple(Group(group.label, group.start * width, group.stop * width) for group in self.groups)
        return Order(rows, groups)


def stored_order(num_samples: int) -> Order:
    """Return the order in which samples are stored."""
    return Order(np.arange(num_samples))


def id_order(ids: Sequence[str]) -> Order:
    """Return the order of the names; numbers in them count by their value, so that ``img-9`` comes before ``img-10``."""
    return Order(np.array(sorted(range(len(ids)), key=lambda position: _natural(ids[position])), dtype=np.int64))


def class_order(labels_N: Array | None) -> Order:
    """Return the order of the classes; samples of one class stay as they are stored.

    Raises:
        ConfigError: The split has no classes.
    """
    if labels_N is None or labels_N.ndim != 1 or labels_N.dtype.kind not in "iu":
        raise ConfigError("the samples have no classes to be ordered by; choose the order stored, id or cluster.")
    positions = np.argsort(labels_N, kind="stable")
    return Order(positions, grouped(labels_N[positions]))


def grouped(labels_N: Array) -> tuple[Group, ...]:
    """Return the groups of labels of which equal ones are side by side."""
    if not len(labels_N):
        return ()
    starts = np.flatnonzero(np.concatenate(([True], labels_N[1:] != labels_N[:-1])))
    stops = [*starts[1:], len(labels_N)]
    return tuple(Group(str(labels_N[start]), int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return a key: runs of digits as numbers, everything else as text; equal keys by the name itself."""
    parts = []
    for part in filter(None, _DIGITS.split(name)):
        if part[0] in "0123456789":
            # By length first: a number of any length without making an integer of it.
            number = part.lstrip("0")
            parts.append((0, len(number), number))
        else:
            parts.append((1, 0, part))
    return parts, name
