"""How fast a store takes and gives chunks and receipts, measured with small objects that are removed again."""

import os
import statistics
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ntkpipe.configs.cluster import StorageConfig
from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore

NUM_CHUNKS: Final = 12
NUM_SMALL: Final = 24
SIDE_BY_SIDE: Final = 4


def measure_storage(store: AbstractStore, chunk_bytes: int = 2**20) -> StorageConfig:
    """Write, read and delete a few chunks and receipts.

    Rates of all workers together are those of a few threads here: a lower bound for many machines. Of a local disk it is
    the system's cache that answers, as it does in runs that are not much larger than memory.

    Args:
        store: Of runs; everything that is written there is removed again.
        chunk_bytes: Of a chunk.

    Raises:
        StorageError: The store cannot be written or read.
    """
    folder, content = f"{layout.LOCK}/speed-{uuid.uuid4().hex}", os.urandom(chunk_bytes)
    keys = [f"{folder}/{index}" for index in range(NUM_CHUNKS)]
    small = [f"{folder}/small-{index}" for index in range(NUM_SMALL)]
    try:
        write = _median(lambda key: store.put(key, content), keys)
        read = _median(store.get, keys)
        commit = _median(lambda key: store.put_new(key, key.encode()), small)
        answer = _median(store.get, small)
        writes = _side_by_side(lambda key: store.put(key, content), keys)
        reads, answers = _side_by_side(store.get, keys), _side_by_side(store.get, small)
    finally:
        store.delete_many([*keys, *small])
    total = NUM_CHUNKS * chunk_bytes
    worker_read, worker_write = (chunk_bytes / max(each - answer, each / 10) for each in (read, write))
    return StorageConfig(
        source=f"measured with chunks of {chunk_bytes:,} bytes from one machine",
        measured=True,
        worker_read=worker_read,
        worker_write=worker_write,
        total_read=max(worker_read, total / reads),
        total_write=max(worker_write, total / writes),
        request_seconds=answer,
        total_requests=max(1 / answer, NUM_SMALL / answers),
        commits=1 / commit,
    )


def _median(request: Callable[[str], object], keys: list[str]) -> float:
    times = []
    for key in keys:
        started = time.perf_counter()
        request(key)
        times.append(time.perf_counter() - started)
    return max(statistics.median(times), 1e-9)


def _side_by_side(request: Callable[[str], object], keys: list[str]) -> float:
    """Return the seconds of all requests, several of which are under way."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        started = time.perf_counter()
        list(pool.map(request, keys))
        return max(time.perf_counter() - started, 1e-9)
