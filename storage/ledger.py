"""All receipts of a run: which tasks are finished, and how a task becomes finished."""

import io
from collections.abc import Iterable, Iterator
from typing import final

import google_crc32c
import numpy as np

from ntkpipe.configs.errors import ChunkNotReadyError
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.records import Failure, ObjectRecord, Receipt
from ntkpipe.storage.stores.base import AbstractStore


@final
class Ledger:
    """Reads and writes receipts. Holds one listing per stage, refreshed on demand; O(number of tasks) memory."""

    def __init__(self, store: AbstractStore) -> None:
        self._store = store
        self._known: dict[str, set[str]] = {}

    def committed(self, stage: str) -> frozenset[str]:
        """Return the ids of a stage's finished tasks, from one fresh listing."""
        prefix = f"{layout.RECEIPTS}/{stage}"
        names = self._store.names(prefix)
        self._known[stage] = {name.removeprefix(f"{prefix}/").removesuffix(".json") for name in names}
        return frozenset(self._known[stage])

    def commit(self, receipt: Receipt) -> bool:
        """Finish a task; False when another attempt has finished it before."""
        key = layout.receipt(receipt.stage, receipt.task)
        won = self._store.put_new(key, receipt.encode())
        self._known.setdefault(receipt.stage, set()).add(receipt.task)
        return won

    def is_committed(self, stage: str, task: str) -> bool:
        """Return whether a task is finished; looks again before it says no."""
        return task in self._known.get(stage, ()) or task in self.committed(stage)

    def require(self, stage: str, task: str) -> None:
        """Refuse to go on unless a task is finished.

        Raises:
            ChunkNotReadyError: It has no receipt.
        """
        if not self.is_committed(stage, task):
            raise ChunkNotReadyError(
                f"{self._store.url}: {stage} task {task} is not committed yet; its chunks must not be read. "
                "See `ntkpipe status`, and finish the run with `ntkpipe resume`."
            )

    def receipt(self, stage: str, task: str) -> Receipt:
        """Read one receipt."""
        key = layout.receipt(stage, task)
        return Receipt.parse(self._store.read(key), f"{self._store.url}/{key}")

    def receipts(self, stage: str) -> Iterator[Receipt]:
        """Yield the receipts of a stage's finished tasks, sorted by task."""
        keys = (layout.receipt(stage, task) for task in sorted(self.committed(stage)))
        for key, data in self._store.get_many(keys):
            if data is not None:
                yield Receipt.parse(data, f"{self._store.url}/{key}")

    def commit_many(self, receipts: Iterable[Receipt]) -> None:
        """Finish many tasks."""
        for receipt in receipts:
            self.commit(receipt)

    def revoke(self, stage: str, task: str) -> None:
        """Take a receipt back, so that the task counts as not done."""
        self._store.delete(layout.receipt(stage, task))
        self._known.get(stage, set()).discard(task)

    def record_failure(self, failure: Failure) -> None:
        """Keep what went wrong with an attempt."""
        key = layout.failure(failure.stage, failure.task, failure.epoch, failure.attempt)
        self._store.put(key, failure.encode())


def put_object(store: AbstractStore, key: str, data: bytes) -> ObjectRecord:
    """Write a small object of a task and return its record for the receipt."""
    store.put(key, data)
    return ObjectRecord(key=key, crc32c=object_checksum(data), nbytes=len(data))


def npy_bytes(values: Array) -> bytes:
    """Return an array as the content of an ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def read_npy(data: bytes) -> Array:
    """Return the array of an ``.npy`` file's content."""
    values: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return values


def object_checksum(data: bytes) -> str:
    """Return crc32c of an object's bytes, in hexadecimal."""
    return f"{google_crc32c.value(data):08x}"
