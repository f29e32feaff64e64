"""Reading what tasks have committed: a chunk is data only if it is, to the bit, the one that its task's receipt names."""

from collections.abc import Callable
from typing import final

from ntkpipe.configs.errors import CorruptChunkError
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.tile_cache import TileCache, TileKey

LITTLE = 1 / 16
"""The share of a chunk up to which it is not worth holding the chunk for what is wanted of it."""


def read_committed(
    chunks: ChunkStore, ledger: Ledger, stage: str, task: str, path: str, position: tuple[int, ...]
) -> Array:
    """Read one whole chunk of a finished task, clipped to the array's bounds; the array is the caller's own.

    Raises:
        ChunkNotReadyError: The task is not finished.
        CorruptChunkError: The chunk is damaged, gone, or another one than was committed.
        StorageError: The receipt is damaged, so that nobody can tell.
    """
    return CommittedChunks(chunks, ledger).whole(stage, task, path, position)


@final
class Scratch:
    """Memory that one thread reads into again and again; as much as the largest chunk so far."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def of(self, num_bytes: int) -> bytearray:
        """Return memory of at least so many bytes, with anything in it."""
        if len(self._memory) < num_bytes:
            self._memory = bytearray(num_bytes)
        return self._memory


@final
class CommittedChunks:
    """Chunks of finished tasks. Thread safe.

    Args:
        chunks: Of the run.
        ledger: Of the run.
        cache: Where decoded chunks are kept; None keeps none, and arrays are then the caller's own.

    Raises:
        ChunkNotReadyError: From every method: the task is not finished.
        CorruptChunkError: From every method: the chunk is damaged, gone, or another one than was committed.
        StorageError: From every method: the receipt is damaged, so that nobody can tell, or the store fails.
    """

    def __init__(self, chunks: ChunkStore, ledger: Ledger, cache: TileCache | None = None) -> None:
        self.ledger = ledger
        self._chunks = chunks
        self._cache = cache

    def checksum(self, stage: str, task: str, path: str, position: tuple[int, ...]) -> str:
        """Return the checksum of a chunk in its task's receipt."""
        return self.ledger.sums.of(stage, task, path, position)

    def holds(self, stage: str, task: str, path: str, position: tuple[int, ...]) -> bool:
        """Return whether nothing has to be read for a chunk, now."""
        if self._cache is None:
            return False
        committed = self.checksum(stage, task, path, position)
        return self._cache.holds(TileKey(self._chunks.store.url, path, position, committed))

    def whole(self, stage: str, task: str, path: str, position: tuple[int, ...]) -> Array:
        """Return a chunk, clipped to the array's bounds; nobody may write to one that is kept."""

        def read(committed: str) -> Array:
            if self._cache is None or self._chunks.spec(path).dtype == "str":
                return self._chunks.read(path, position, committed=committed)
            key = TileKey(self._chunks.store.url, path, position, committed)
            return self._cache.get(key, lambda: self._load(path, position, committed))

        return self._once_more(read, stage, task, path, position)

    def part(
        self,
        stage: str,
        task: str,
        path: str,
        position: tuple[int, ...],
        pick: Callable[[Array], Array],
        scratch: Scratch,
        *,
        is_little: bool,
    ) -> Array:
        """Return something of a chunk, all of which is checked.

        Args:
            stage: Of the task.
            task: That wrote the chunk.
            path: The array.
            position: The chunk's index in the grid.
            pick: Copies what is wanted out of the chunk.
            scratch: The thread's own.
            is_little: It is not worth holding the chunk for, unless that is wanted again.
        """

        def read(committed: str) -> Array:
            if self._cache is not None:
                key = TileKey(self._chunks.store.url, path, position, committed)
                found = self._cache.find(key)
                if found is None and (not is_little or self._cache.wanted_again(key)):
                    found = self._cache.get(key, lambda: self._load(path, position, committed))
                if found is not None:
                    return pick(found)
            memory = scratch.of(self._chunks.object_bytes(path))
            return self._chunks.take(path, position, pick, memory, committed=committed)

        return self._once_more(read, stage, task, path, position)

    def _load(self, path: str, position: tuple[int, ...], committed: str) -> Array:
        values = self._chunks.read(path, position, committed=committed)
        # Of a chunk at the edge a view would keep all of its memory.
        return values if values.shape == self._chunks.spec(path).chunks else values.copy()

    def _once_more(
        self, read: Callable[[str], Array], stage: str, task: str, path: str, position: tuple[int, ...]
    ) -> Array:
        sums = self.ledger.sums
        try:
            return read(sums.of(stage, task, path, position))
        except CorruptChunkError:
            # The task may have been repaired since its receipt was read.
            sums.forget(stage, task)
            return read(sums.of(stage, task, path, position))
