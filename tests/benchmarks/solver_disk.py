"""Solving a kernel that a run stores, in less memory than it takes, with every read from a cold cache."""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.kernel import AbstractMatrix
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrices import MatrixReader
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores import open_store
from ntkpipe.workers.operators.blocked import BlockedOperator

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
        drop(self.path(row, column))
        values = self._matrix.tile(row, column)
        self.bytes_read += values.nbytes
        return values

    def diagonal(self) -> np.ndarray[Any, Any]:
        """Read the tiles on the diagonal."""
        return np.concatenate([np.diagonal(self.tile(index, index)) for index in range(self.num_blocks)])

    def read(self, rows: np.ndarray[Any, Any], columns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Read the tiles in which some entries lie, each once."""
        for row in np.unique(rows // self.block_rows):
            for column in np.unique(columns // self.block_rows):
                path = self.path(max(row, column), min(row, column))
                drop(path)
                self.bytes_read += path.stat().st_size
        return self._matrix.read(rows, columns)

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


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second of reading every tile once, in order, from a cold cache."""

    files: float
    """As plain files."""
    tiles: float
    """As the solver reads them: decoded, and checked for chunks that are missing."""


def read_rates(tiles: ColdTiles) -> Rates:
    """Measure both."""
    for row, column in tiles.positions():
        drop(tiles.path(row, column))
    start = time.perf_counter()
    for row, column in tiles.positions():
        tiles.path(row, column).read_bytes()
    files_seconds = time.perf_counter() - start
    start = time.perf_counter()
    for row, column in tiles.positions():
        tiles.tile(row, column)
    return Rates(tiles.stored_bytes / files_seconds, tiles.stored_bytes / (time.perf_counter() - start))


def cap_memory(num_bytes: int) -> None:
    """Let this process allocate so many bytes beyond what it has; more is a MemoryError.

    RLIMIT_DATA counts private writable memory, so that torch's allocations count, and read-only code and the page cache
    do not.
    """
    limit = status_bytes("VmData") + num_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def status_bytes(field: str) -> int:
    """Return a figure of this process, in bytes, from /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def operator_of(tiles: ColdTiles) -> BlockedOperator:
    """Return the matrix for a solver."""
    return BlockedOperator(tiles)


def allowance(stored_bytes: int) -> int:
    """Return the bytes that a solver may allocate: half of what is stored, which is about a quarter of the matrix."""
    return max(LEAST_BYTES, stored_bytes // 2)


def predictions(inputs_ND: torch.Tensor, test_MD: torch.Tensor, alpha_NT: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Return (M, T) predictions, the kernel computed again some rows at a time."""
    import ntkpipe

    parts = [
        ntkpipe.closed_form(NAME, rows_BD, inputs_ND, bandwidth=bandwidth).double() @ alpha_NT.double()
        for rows_BD in test_MD.split(500)
    ]
    return torch.cat(parts)
