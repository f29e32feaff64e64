"""Reading what tasks have committed: a chunk is data only if it is, to the bit, the one that its task's receipt names."""

from ntkpipe.configs.errors import CorruptChunkError
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.ledger import Ledger


def read_committed(
    chunks: ChunkStore, ledger: Ledger, stage: str, task: str, path: str, position: tuple[int, ...]
) -> Array:
    """Read one whole chunk of a finished task, clipped to the array's bounds; the array is the caller's own.

    Raises:
        ChunkNotReadyError: The task is not finished.
        CorruptChunkError: The chunk is damaged, gone, or another one than was committed.
        StorageError: The receipt is damaged, so that nobody can tell.
    """
    try:
        return chunks.read(path, position, committed=ledger.sums.of(stage, task, path, position))
    except CorruptChunkError:
        # The task may have been repaired since its receipt was read.
        ledger.sums.forget(stage, task)
        return chunks.read(path, position, committed=ledger.sums.of(stage, task, path, position))
