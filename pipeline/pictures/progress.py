"""How far something is that reads many tiles, and whether anybody still waits for it."""

from collections.abc import Callable
from threading import Lock
from typing import final


@final
class Progress:
    """How far a pass is. Thread safe.

    Args:
        wanted: Whether somebody still waits for it; asked after every tile.
    """

    def __init__(self, wanted: Callable[[], bool] = lambda: True) -> None:
        self._expected = 0
        self._done = 0
        self._wanted = wanted
        self._lock = Lock()

    @property
    def done_fraction(self) -> float:
        """Between 0 and 1."""
        return min(1.0, self._done / self._expected) if self._expected else 0.0

    def expect(self, num_tiles: int) -> None:
        """Say that so many more tiles will be read."""
        with self._lock:
            self._expected += num_tiles

    def advance(self) -> None:
        """Count a tile.

        Raises:
            NotWantedError: Nobody waits any more.
        """
        with self._lock:
            self._done += 1
        if not self._wanted():
            raise NotWantedError


class NotWantedError(Exception):
    """A picture that is being made is not wanted any more."""
