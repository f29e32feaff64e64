"""Solving a kernel that a run stores, in less memory than it takes, with every read from a cold cache."""

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np
import torch

from benchmarks.measure import timed, with_peak_memory
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrices import MatrixReader
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores.registry import open_store

T = TypeVar("T")

NAME = "laplace"
SPLIT = "train"

LEAST_BYTES = 96 * 2**20
"""No solver works with less beside what its libraries take; a kernel for which this is no cap says nothing."""


@final
class ColdTiles:
    """Tiles of a run whose files are dropped from the page cache before they are read.

    Without root, posix_fadvise drops clean pages of a file; a cache below the file system, such as a hypervisor's, stays.
    """

    def __init__(self, folder: Path) -> None:
        store = open_store(folder)
        geometry = Manifest.read(store).geometry
        reader = MatrixReader(ChunkStore(store, read_only=True), Ledger(store), geometry)
        self._matrix: AbstractMatrix = reader.matrix(NAME, SPLIT, SPLIT, cache_bytes=0)
        self._chunks = folder / layout.DATA / layout.kernel(NAME, f"{SPLIT}-{SPLIT}") / "c"
        self.block_rows = self._matrix.block_rows
        self.dtype = self._matrix.dtype
        self.num_blocks = -(-self._matrix.size // self.block_rows)
        self.bytes_read = 0

    @property
    def size(self) -> int:
        """N."""
        return self._matrix.size

    def tile(self, row: int, column: int) -> np.ndarray[Any, Any]:
        """Read a tile from the disk."""
        self._drop(row, column)
        return self._matrix.tile(row, column)

    def diagonal(self) -> np.ndarray[Any, Any]:
        """Read the tiles on the diagonal."""
        return np.concatenate([np.diagonal(self.tile(index, index)) for index in range(self.num_blocks)])

    def read(self, rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Read the tiles in which some entries lie, each once."""
        for row in np.unique(rows // self.block_rows):
            for column in np.unique(columns // self.block_rows):
                self._drop(int(max(row, column)), int(min(row, column)))
        return self._matrix.read(rows, columns)

    def _drop(self, row: int, column: int) -> None:
        path = self.path(row, column)
        drop(path)
        self.bytes_read += path.stat().st_size

    def path(self, row: int, column: int) -> Path:
        """Return the file of a tile."""
        return self._chunks / str(row) / str(column)

    @property
    def stored_bytes(self) -> int:
        """Of all tiles, on disk."""
        return sum(self.path(row, column).stat().st_size for row, column in self.positions())

    def positions(self) -> list[tuple[int, int]]:
        """Return the tiles in storage order."""
        return [(row, column) for row in range(self.num_blocks) for column in range(row + 1)]


def drop(path: Path) -> None:
    """Drop a file from the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def read_rates(tiles: ColdTiles) -> tuple[float, float]:
    """Return bytes per second of reading every tile once, in order, from a cold cache: as plain files, and as tiles."""
    for row, column in tiles.positions():
        drop(tiles.path(row, column))
    start = time.perf_counter()
    for row, column in tiles.positions():
        tiles.path(row, column).read_bytes()
    files_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for row, column in tiles.positions():
        tiles.tile(row, column)
    return tiles.stored_bytes / files_seconds, tiles.stored_bytes / (time.perf_counter() - start)


@contextmanager
def capped_memory(num_bytes: int) -> Iterator[None]:
    """Let this process allocate so many bytes beyond what it has; more is an error of the allocator's.

    RLIMIT_DATA counts private writable memory, so that torch's allocations count, and read-only code and the page cache
    do not.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (status_bytes("VmData") + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def status_bytes(field: str) -> int:
    """Return a figure of this process, in bytes, from /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def allowance(stored_bytes: int) -> int:
    """Return the bytes that a solver may allocate: half of what is stored, which is about a quarter of the matrix."""
    return max(LEAST_BYTES, stored_bytes // 2)


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """What was read, how fast, and in how much memory."""

    stored_bytes: int
    """Of the tiles of the lower triangle, on disk."""
    allowed_bytes: int
    """That the solver could allocate."""
    resident_bytes: int
    """The largest resident set of the process during the solve, libraries included."""
    bytes_read: int
    """Of files of tiles, during the solve."""
    device_bytes: int | None
    """What the kernel counts as fetched from the device meanwhile, None where it does not tell."""
    files_per_second: float
    """Bytes per second of reading all tiles once as plain files, from a cold cache."""
    tiles_per_second: float
    """The same through the storage layer: decoded, and checked for what is missing."""


def measure_cold(tiles: ColdTiles, solve: Callable[[], T]) -> tuple[T, float, int | None, DiskFacts]:
    """Measure read rates, then a solve with a cap; return its result, its seconds, and by how much memory grew."""
    files, through_tiles = read_rates(tiles)
    before, stored = tiles.bytes_read, tiles.stored_bytes
    allowed = allowance(stored)
    cpu = torch.device("cpu")
    device = fetched_bytes()
    with capped_memory(allowed):
        (result, seconds), growth = with_peak_memory(lambda: timed(solve, cpu), cpu)
    resident, after = status_bytes("VmHWM"), fetched_bytes()
    fetched = None if device is None or after is None else after - device
    facts = DiskFacts(stored, allowed, resident, tiles.bytes_read - before, fetched, files, through_tiles)
    return result, seconds, growth, facts


def fetched_bytes() -> int | None:
    """Return the bytes that this process has fetched from devices, None where the kernel does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)
