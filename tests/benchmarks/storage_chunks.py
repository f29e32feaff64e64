"""Writing, reading and verifying chunks, against zarr with the same codec on the same values."""

import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.abc.store
import zarr.storage
from zarr.codecs import Crc32cCodec

from benchmarks.storage_report import Prepare, Row, repeated, take_turns
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.metadata import ArraySpec
from ntkpipe.storage.records import Receipt
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.verify import verify_tasks

LEAST_RATIO = 0.8
STAGE = "kernel"


@dataclass(frozen=True, slots=True)
class Shape:
    """Chunks of a kind."""

    what: str
    rows: int
    columns: int
    num_chunks: int

    @property
    def nbytes(self) -> int:
        """Of all chunks."""
        return 4 * self.rows * self.columns * self.num_chunks

    @property
    def spec(self) -> ArraySpec:
        """One column of chunks."""
        size = (self.rows * self.num_chunks, self.columns)
        return ArraySpec("kernel/k/train-train", size, (self.rows, self.columns), "float32", ("row", "column"))

    def values(self) -> Any:
        """Return the values of a chunk."""
        return np.random.default_rng(0).standard_normal((self.rows, self.columns), dtype=np.float32)


def shapes(mebibytes: int) -> tuple[Shape, Shape]:
    """Return blocks of features of 16 MiB and kernel tiles of 4 MiB, of each so many MiB; fewer bytes make smaller chunks."""
    total = mebibytes * 2**20
    feature_rows, tile_rows = (min(most, math.isqrt(total // 16)) for most in (2048, 1024))
    return (
        Shape("blocks of features", feature_rows, feature_rows, max(1, total // (4 * feature_rows**2))),
        Shape("kernel tiles", tile_rows, tile_rows, max(1, total // (4 * tile_rows**2))),
    )


def measure_chunks(place: str, folder: Path, mebibytes: int, repeats: int) -> Iterator[Row]:
    """Yield what chunks cost in a folder."""
    for shape in shapes(mebibytes):
        size = shape.rows * shape.columns * 4
        what = f"{shape.what}, {size / 2**20:.3g} MiB"
        yield _row(place, f"write {what}", shape, _writes(folder, shape), _zarr_writes(folder, shape), repeats)
        yield _row(place, f"read {what}", shape, *_reads(folder, shape), repeats)
        shutil.rmtree(folder / "ours")
        shutil.rmtree(folder / "zarr")
    # Of the last shape: what it takes to survive a power failure.
    name = f"write {shape.what} with fsync"
    ours, bare = take_turns(_writes(folder, shape, fsync=True), _synced_files(folder, shape), repeats)
    yield Row(place, name, "bytes", shape.nbytes, ours, bare, "a file, fsync, rename, fsync of the folder")
    shutil.rmtree(folder / "ours")
    shutil.rmtree(folder / "files")
    yield _verify(place, folder, shape, repeats)


def _row(place: str, what: str, shape: Shape, ours: Prepare, bare: Prepare, repeats: int) -> Row:
    first, second = take_turns(ours, bare, repeats)
    return Row(place, what, "bytes", shape.nbytes, first, second, "zarr, bytes and crc32c", LEAST_RATIO)


def empty(folder: Path) -> Path:
    """Return a folder without anything in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def write_all(chunks: ChunkStore, shape: Shape, values: Any) -> None:
    """Write every chunk."""
    for index in range(shape.num_chunks):
        chunks.write(shape.spec.path, (index, 0), values)


def read_all(chunks: ChunkStore, shape: Shape) -> None:
    """Read every chunk."""
    for index in range(shape.num_chunks):
        chunks.read(shape.spec.path, (index, 0))


def zarr_array(store: zarr.abc.store.Store, shape: Shape) -> Any:
    """Create the same array by zarr alone."""
    spec = shape.spec
    return zarr.create_array(
        store,
        name=spec.path,
        shape=spec.shape,
        chunks=spec.chunks,
        dtype="float32",
        fill_value=float("nan"),
        filters=None,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )


def zarr_write_all(array: Any, shape: Shape, values: Any) -> None:
    """Write every chunk by zarr."""
    for index in range(shape.num_chunks):
        array[index * shape.rows : (index + 1) * shape.rows] = values


def zarr_read_all(array: Any, shape: Shape) -> None:
    """Read every chunk by zarr."""
    for index in range(shape.num_chunks):
        array[index * shape.rows : (index + 1) * shape.rows]


def _writes(folder: Path, shape: Shape, *, fsync: bool = False) -> Prepare:
    values = shape.values()

    def prepare(number: int) -> Callable[[], object]:
        chunks = ChunkStore(open_store(empty(folder / "ours"), fsync=fsync))
        chunks.create([shape.spec], {})
        return lambda: write_all(chunks, shape, values)

    return prepare


def _zarr_writes(folder: Path, shape: Shape) -> Prepare:
    values = shape.values()

    def prepare(number: int) -> Callable[[], object]:
        array = zarr_array(zarr.storage.LocalStore(empty(folder / "zarr")), shape)
        return lambda: zarr_write_all(array, shape, values)

    return prepare


def _synced_files(folder: Path, shape: Shape) -> Prepare:
    data = shape.values().tobytes()

    def write() -> None:
        for index in range(shape.num_chunks):
            path = folder / "files" / str(index)
            with open(f"{path}.partial", "wb", buffering=0) as file:
                file.write(data)
                os.fsync(file.fileno())
            os.replace(f"{path}.partial", path)
            descriptor = os.open(path.parent, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def prepare(number: int) -> Callable[[], object]:
        empty(folder / "files").mkdir(parents=True)
        return write

    return prepare


def _reads(folder: Path, shape: Shape) -> tuple[Prepare, Prepare]:
    """Return readers of what the writers have left, after a look that both hold the same."""
    chunks = ChunkStore(open_store(folder / "ours"), read_only=True)
    array = zarr.open_array(zarr.storage.LocalStore(folder / "zarr"), path=shape.spec.path, mode="r")
    last = shape.num_chunks - 1
    if not np.array_equal(chunks.read(shape.spec.path, (last, 0)), array[last * shape.rows :]):
        raise AssertionError("ntkpipe and zarr have stored different values")
    return repeated(lambda: read_all(chunks, shape)), repeated(lambda: zarr_read_all(array, shape))


def _verify(place: str, folder: Path, shape: Shape, repeats: int) -> Row:
    """Time re-reading all chunks against their receipts, against reading the files."""
    store, values = open_store(empty(folder / "ours")), shape.values()
    chunks, ledger = ChunkStore(store), Ledger(store)
    chunks.create([shape.spec], {})
    for index in range(shape.num_chunks):
        record = chunks.write(shape.spec.path, (index, 0), values)
        ledger.commit(Receipt(stage=STAGE, task=f"{index:06d}", chunks=(record,), seconds=1.0, worker="bench"))
    ids = frozenset(f"{index:06d}" for index in range(shape.num_chunks))
    files = [folder / "ours" / shape.spec.key((index, 0)) for index in range(shape.num_chunks)]

    def verify() -> None:
        found = list(verify_tasks(ChunkStore(store, read_only=True), Ledger(store), [(STAGE, ids)]))
        if len(found) != shape.num_chunks or any(checked.findings for checked in found):
            raise AssertionError("what was just written does not verify")

    def read() -> None:
        for file in files:
            file.read_bytes()

    ours, bare = take_turns(repeated(verify), repeated(read), repeats)
    shutil.rmtree(folder / "ours")
    return Row(place, f"verify {shape.what}", "bytes", shape.nbytes, ours, bare, "reading the files, one thread")
