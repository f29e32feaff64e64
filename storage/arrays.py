"""Whole chunks of zarr arrays: written by exactly one task each, checked by two checksums.

Every chunk carries crc32c in its own bytes (the codec) and in its task's receipt (the values). The fill value of
real arrays is NaN and all-zero chunks are written like any other, so that a chunk that is gone cannot pass for data.
Chunks are not sharded: zarr 3.1 reads a shard before it rewrites it, and one torn shard blocks every retry.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, final

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec

from ntkpipe.configs.errors import CorruptChunkError, StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.records import ChunkRecord
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.errors import storage_errors

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """An array of a run."""

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    """``float32``, ``float64``, ``int64`` or ``str``."""
    dimensions: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def chunk_bytes(self) -> int:
        """Size of a whole chunk of numbers."""
        return int(np.prod(self.chunks)) * np.dtype(self.dtype).itemsize


def _fill_value(dtype: str) -> Any:
    if dtype == "str":
        return ""
    return float("nan") if dtype.startswith("float") else np.iinfo(np.dtype(dtype)).min


@final
class ChunkStore:
    """The arrays of one run, opened when first used.

    Raises:
        StorageError: From every method, when the store fails; CorruptChunkError when a chunk's bytes are damaged.
    """

    def __init__(self, store: AbstractStore, *, read_only: bool = False) -> None:
        self.store = store
        self._mode: Literal["r", "r+"] = "r" if read_only else "r+"
        self._zarr_store = store.zarr_store(layout.DATA, read_only=read_only)
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def create(self, specs: Iterable[ArraySpec], attributes: dict[str, Any]) -> None:
        """Create the run's group and arrays; what exists already is left as it is, so that this can be repeated."""
        with storage_errors(self.store.url):
            root = zarr.open_group(self._zarr_store, mode="a")
            root.attrs.update(attributes)
            for spec in specs:
                if spec.path in root:
                    continue
                root.create_array(
                    spec.path,
                    shape=spec.shape,
                    chunks=spec.chunks,
                    dtype=str if spec.dtype == "str" else spec.dtype,
                    fill_value=_fill_value(spec.dtype),
                    filters=None,
                    compressors=[Crc32cCodec()],
                    dimension_names=spec.dimensions,
                    attributes=spec.attributes,
                    config={"write_empty_chunks": True},
                )

    def array(self, path: str) -> "zarr.Array[Any]":
        """Open an array.

        Raises:
            StorageError: It does not exist.
        """
        if path not in self._arrays:
            with storage_errors(self.store.url):
                try:
                    self._arrays[path] = zarr.open_array(
                        self._zarr_store, path=path, config={"write_empty_chunks": True}, mode=self._mode
                    )
                except (FileNotFoundError, KeyError, ValueError):
                    raise StorageError(f"{self.store.url} has no readable array {path}.") from None
        return self._arrays[path]

    def write(self, path: str, position: tuple[int, ...], values: Array) -> ChunkRecord:
        """Write one whole chunk.

        Args:
            path: The array.
            position: The chunk's index in the grid.
            values: Everything of the chunk that lies inside the array's bounds.
        """
        array = self.array(path)
        region = _region(array, position)
        expected = tuple(part.stop - part.start for part in region)
        assert values.shape == expected, f"{path}{position}: {values.shape} != {expected}"
        contents = values if values.dtype.kind in "OTU" else np.ascontiguousarray(values, dtype=array.dtype)
        with storage_errors(self.store.url):
            array[region] = contents
        return ChunkRecord(
            array=path,
            position=position,
            start=tuple(part.start for part in region),
            shape=expected,
            crc32c=checksum(contents),
            nbytes=sum(map(len, _raw(contents))),
        )

    def read(self, path: str, position: tuple[int, ...]) -> Array:
        """Read one whole chunk, clipped to the array's bounds.

        Raises:
            CorruptChunkError: Its bytes fail their checksum, or it holds fill values: it is damaged or gone.
        """
        array = self.array(path)
        where = f"{self.store.url}/{layout.DATA}/{path}, chunk {list(position)}"
        remedy = "Run `ntkpipe verify` to see what is affected, and `ntkpipe verify --repair` to compute it again."
        with storage_errors(self.store.url):
            try:
                values = np.asarray(array[_region(array, position)])
            except ValueError as error:
                raise CorruptChunkError(f"{where}: its bytes are damaged ({error}). {remedy}") from None
        if values.size and _holds_fill(values):
            raise CorruptChunkError(f"{where}: the chunk is missing or incomplete. {remedy}")
        return values

    def matches(self, record: ChunkRecord) -> str | None:
        """Compare a chunk with its record; return what is wrong, None when nothing is."""
        try:
            values = self.read(record.array, record.position)
        except StorageError as error:
            return error.message
        found = checksum(values)
        if found != record.crc32c:
            return f"{record.array}, chunk {list(record.position)}: crc32c is {found}, committed was {record.crc32c}"
        return None


def checksum(values: Array) -> str:
    """Return crc32c of the values' little-endian bytes (UTF-8 with a terminator for strings), in hexadecimal."""
    state = 0
    for part in _raw(values):
        state = google_crc32c.extend(state, part)
    return f"{state:08x}"


def _raw(values: Array) -> list[bytes]:
    if values.dtype.kind in "OTU":
        return [str(text).encode() + b"\0" for text in values.ravel()]
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return [np.ascontiguousarray(little).tobytes()]


def _holds_fill(values: Array) -> bool:
    if values.dtype.kind == "f":
        # NaN survives summation, which is several times faster than a test of every value; a sum may also overflow to NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = bool(np.isnan(values.sum()))
        return suspicious and bool(np.isnan(values).any())
    if values.dtype.kind == "i":
        return bool((values == np.iinfo(values.dtype).min).any())
    return any(text == "" for text in values.ravel())


def _region(array: "zarr.Array[Any]", position: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(index * chunk, min((index + 1) * chunk, size))
        for index, chunk, size in zip(position, array.chunks, array.shape, strict=True)
    )
