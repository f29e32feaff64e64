"""Sums over time in a fixed number of bins, whatever the time turns out to be."""

from array import array
from collections.abc import Hashable
from operator import add
from typing import final

NUM_BINS = 240
FIRST_WIDTH = 0.005
"""Seconds of a bin before there is more to be shown."""


@final
class TimeBins:
    """Amounts spread over the time in which they came about, by key; memory is O(keys).

    The bins of all keys become twice as wide, and half of them free, whenever an amount lies behind the last one.

    Attributes:
        width: Of a bin, in seconds.
    """

    def __init__(self) -> None:
        self.width = FIRST_WIDTH
        self._values: dict[Hashable, array[float]] = {}

    def add(self, key: Hashable, start: float, stop: float, amount: float) -> None:
        """Spread an amount evenly over a range of seconds, none of them below 0."""
        while stop > self.width * NUM_BINS:
            self._widen()
        values = self._values.get(key)
        if values is None:
            values = self._values[key] = array("d", bytes(8 * NUM_BINS))
        first, last = (min(int(at / self.width), NUM_BINS - 1) for at in (start, stop))
        if first == last or stop <= start:
            values[last] += amount
            return
        rate = amount / (stop - start)
        values[first] += rate * (self.width * (first + 1) - start)
        values[last] += rate * (stop - self.width * last)
        for position in range(first + 1, last):
            values[position] += rate * self.width

    def get(self, key: Hashable) -> list[float]:
        """Return the amounts of a key, one per bin; zeros for an unknown one."""
        values = self._values.get(key)
        return [0.0] * NUM_BINS if values is None else values.tolist()

    def merged(self, keys: list[Hashable]) -> list[float]:
        """Return the sums of several keys."""
        found = [self._values[key] for key in keys if key in self._values]
        return [sum(values) for values in zip(*found, strict=True)] if found else [0.0] * NUM_BINS

    def _widen(self) -> None:
        self.width *= 2
        free = array("d", bytes(8 * (NUM_BINS // 2)))
        for key, values in self._values.items():
            self._values[key] = array("d", map(add, values[::2], values[1::2])) + free
