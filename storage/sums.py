"""Checksums of committed chunks, as receipts tell them; kept for as many chunks as memory should be spent on."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import final

from ntkpipe.configs.errors import CorruptChunkError, NotFoundError
from ntkpipe.storage.records import Receipt
from ntkpipe.storage.segments import Name

MAX_CHUNKS = 100_000
"""Whose checksums are kept, some 30 megabytes."""


@final
class CommittedSums:
    """Checksums of the chunks of the tasks that were asked for last. Thread safe.

    Args:
        receipt: Reads the receipt of a stage's task.
        require: Refuses a task that is not finished.
    """

    def __init__(self, receipt: Callable[[str, str], Receipt], require: Callable[[str, str], None]) -> None:
        self._receipt = receipt
        self._require = require
        self._sums: OrderedDict[Name, dict[tuple[str, tuple[int, ...]], str]] = OrderedDict()
        self._num_chunks = 0
        self._lock = Lock()

    def of(self, stage: str, task: str, array: str, position: tuple[int, ...]) -> str:
        """Return the checksum of a chunk, in hexadecimal.

        Raises:
            ChunkNotReadyError: The task is not finished.
            CorruptChunkError: It is, and has not written the chunk.
            StorageError: Its receipt cannot be read.
        """
        found = self._of(stage, task).get((array, position))
        if found is None:
            raise CorruptChunkError(
                f"{stage} task {task} is committed, but its receipt names no chunk {list(position)} of {array}. "
                "Run `ntkpipe verify` to see what is affected."
            )
        return found

    def all_of(self, stage: str, task: str) -> str:
        """Return the checksums of all chunks of a task, one behind the other.

        Raises:
            ChunkNotReadyError: The task is not finished.
            StorageError: Its receipt cannot be read.
        """
        return "".join(self._of(stage, task).values())

    def holds(self, stage: str, task: str) -> bool:
        """Return whether the checksums of a task are at hand."""
        with self._lock:
            return (stage, task) in self._sums

    def keep(self, receipt: Receipt) -> dict[tuple[str, tuple[int, ...]], str]:
        """Keep the checksums of a receipt that has been read, and return them by array and position."""
        name = (receipt.stage, receipt.task)
        sums = {(record.array, record.position): record.crc32c for record in receipt.chunks}
        with self._lock:
            self._num_chunks += len(sums) - len(self._sums.pop(name, ()))
            self._sums[name] = sums
            while self._num_chunks > MAX_CHUNKS and len(self._sums) > 1:
                self._num_chunks -= len(self._sums.popitem(last=False)[1])
        return sums

    def forget(self, stage: str, task: str) -> None:
        """Read the receipt of a task again when it is next asked for."""
        with self._lock:
            self._num_chunks -= len(self._sums.pop((stage, task), ()))

    def _of(self, stage: str, task: str) -> dict[tuple[str, tuple[int, ...]], str]:
        with self._lock:
            sums = self._sums.get((stage, task))
            if sums is not None:
                self._sums.move_to_end((stage, task))
        return self.keep(self._read(stage, task)) if sums is None else sums

    def _read(self, stage: str, task: str) -> Receipt:
        try:
            return self._receipt(stage, task)
        except NotFoundError:
            self._require(stage, task)
            raise
