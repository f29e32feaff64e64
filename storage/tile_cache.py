"""Decoded chunks in memory, shared by everything that reads: so many bytes, the least recently used ones dropped first."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass
from threading import Lock
from typing import final

import numpy as np

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.storage.arrays import Array

REMEMBERED = 16_384
"""Tiles that were wanted a moment ago and not kept; a name takes some hundred bytes."""


@dataclass(frozen=True, slots=True)
class TileKey:
    """A chunk as it was committed: where it is, and the checksum in its task's receipt."""

    url: str
    """Of the run."""
    array: str
    position: tuple[int, ...]
    crc32c: str


@dataclass(frozen=True, slots=True)
class TileCacheStatistics:
    """What a cache has done and what it holds."""

    hits: int
    """Tiles that were there, or that another thread was just loading."""
    misses: int
    """Tiles that had to be loaded, or were read past the cache."""
    evictions: int
    """Tiles that were dropped for others."""
    num_tiles: int
    """Held now."""
    num_bytes: int
    """Held now."""
    max_bytes: int


@final
class TileCache:
    """The decoded chunks that were used last. Thread safe; each is loaded once however many threads ask for it at once.

    It never holds more than its bytes. What is being loaded, and what callers still use after it was dropped, is theirs.

    Args:
        max_bytes: Of all arrays that are held. A larger array is loaded and not held; 0 holds nothing.
        read_only: Whether arrays are handed out such that nobody can write to them. Who is alone with a cache and never
            writes may go without, as torch takes no memory that it must not write to.
    """

    def __init__(self, max_bytes: int, *, read_only: bool = True) -> None:
        self._max_bytes = max_bytes
        self._read_only = read_only
        self._lock = Lock()
        self._tiles: OrderedDict[TileKey, Array] = OrderedDict()
        self._loading: dict[TileKey, Future[Array]] = {}
        self._wanted: OrderedDict[TileKey, None] = OrderedDict()
        self._num_bytes = self._hits = self._misses = self._evictions = 0

    @property
    def statistics(self) -> TileCacheStatistics:
        """What it has done so far and what it holds now."""
        with self._lock:
            return TileCacheStatistics(
                self._hits, self._misses, self._evictions, len(self._tiles), self._num_bytes, self._max_bytes
            )

    def holds(self, key: TileKey) -> bool:
        """Return whether a tile is held now, without using it."""
        with self._lock:
            return key in self._tiles

    def find(self, key: TileKey) -> Array | None:
        """Return a tile if it is held."""
        with self._lock:
            return self._find(key)

    def wanted_again(self, key: TileKey) -> bool:
        """Return whether a tile that is not held was wanted a moment ago too, or is being loaded; remember that it was.

        A request for a little of each of many tiles would drop much that is of more use, so such a tile is worth its
        place only when it is wanted a second time. If it is not, it counts as a miss: whoever asks reads past the cache.
        """
        with self._lock:
            if key in self._loading or key in self._wanted:
                self._wanted.pop(key, None)
                return True
            self._misses += 1
            self._wanted[key] = None
            if len(self._wanted) > REMEMBERED:
                self._wanted.popitem(last=False)
            return False

    def get(self, key: TileKey, load: Callable[[], Array]) -> Array:
        """Return a tile that is held, else load it and hold it.

        Args:
            key: Of the tile.
            load: Returns the tile, as an array that nobody else has and that is all of its memory. Called without locks.

        Raises:
            Exception: What ``load`` raises, to all threads that wait for it.
        """
        while True:
            with self._lock:
                found = self._find(key)
                if found is not None:
                    return found
                others = self._loading.get(key)
                if others is None:
                    self._misses += 1
                    mine = self._loading[key] = Future[Array]()
            if others is None:
                return self._load(key, load, mine)
            error = others.exception()
            if error is None:
                with self._lock:
                    self._hits += 1
                return others.result()
            if isinstance(error, Exception):
                # One exception that several threads raise would gather all their tracebacks.
                raise copy(error) if isinstance(error, NtkPipeError) else error
            # The thread that loaded it was interrupted, which is none of this one's concern.

    def _find(self, key: TileKey) -> Array | None:
        found = self._tiles.get(key)
        if found is not None:
            self._hits += 1
            self._tiles.move_to_end(key)
        return found

    def _load(self, key: TileKey, load: Callable[[], Array], mine: "Future[Array]") -> Array:
        try:
            values = self._sealed(load())
        except BaseException as error:
            with self._lock:
                del self._loading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._loading[key]
            self._keep(key, values)
        mine.set_result(values)
        return values

    def _keep(self, key: TileKey, values: Array) -> None:
        if values.nbytes > self._max_bytes:
            return
        while self._num_bytes + values.nbytes > self._max_bytes:
            _, dropped = self._tiles.popitem(last=False)
            self._num_bytes -= dropped.nbytes
            self._evictions += 1
        self._tiles[key] = values
        self._num_bytes += values.nbytes

    def _sealed(self, values: Array) -> Array:
        # A view of a read-only buffer, because whoever holds an array that owns its memory may make it writable again.
        return np.asarray(memoryview(values.data).toreadonly()) if self._read_only else values
