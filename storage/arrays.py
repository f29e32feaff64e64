"""Whole chunks of zarr arrays: written by exactly one task each, checked by two checksums.

Every chunk carries crc32c in its own bytes (the codec) and in its task's receipt (the values). The fill value of
real arrays is NaN and all-zero chunks are written like any other, so that a chunk that is gone cannot pass for data.
Chunks are not sharded: zarr 3.1 reads a shard before it rewrites it, and one torn shard blocks every retry.

A chunk's bytes are those that zarr's codecs ``bytes`` (``vlen-utf8`` for texts) and ``crc32c`` make. They are made here
and handed to the run's store: a chunk is summed once, copied once, and written as every other object of the run is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any, final

import google_crc32c
import numpy as np
import numpy.typing as npt

from ntkpipe.configs.errors import CorruptChunkError
from ntkpipe.storage.metadata import ArraySpec, documents, problems, stored_spec
from ntkpipe.storage.records import ChunkRecord
from ntkpipe.storage.stores.base import AbstractStore

Array = npt.NDArray[Any]

CHECKSUM_BYTES = 4
LENGTH_BYTES = 4
REMEDY = "Run `ntkpipe verify` to see what is affected, and `ntkpipe verify --repair` to compute it again."


@final
@dataclass(frozen=True, slots=True)
class Reads:
    """What has been read of a run's chunks."""

    num_chunks: int = 0
    num_bytes: int = 0
    """As they are stored."""

    def __sub__(self, other: "Reads") -> "Reads":
        """Return what has been read since."""
        return Reads(self.num_chunks - other.num_chunks, self.num_bytes - other.num_bytes)


@final
class ChunkStore:
    """The arrays of one run. Thread safe.

    Args:
        store: Of the run.
        read_only: Whether nothing may be written.
        specs: Of its arrays. One that is not among them is looked up in the stored metadata when it is first used.

    Attributes:
        store: Of the run.
        reads: What has been read so far.

    Raises:
        StorageError: From every method, when the store fails; CorruptChunkError when a chunk's bytes are damaged.
    """

    def __init__(self, store: AbstractStore, *, read_only: bool = False, specs: Iterable[ArraySpec] = ()) -> None:
        self.store = store
        self.reads = Reads()
        self._read_only = read_only
        self._specs = {spec.path: spec for spec in specs}
        self._lock = Lock()

    def create(self, specs: Iterable[ArraySpec], attributes: dict[str, Any]) -> None:
        """Write the metadata of the run's group and arrays where it is missing or damaged; this can be repeated."""
        self._specs = self._specs | {spec.path: spec for spec in specs}
        expected = documents(self._specs.values(), attributes)
        for key, _ in list(problems(self.store, expected, exactly=True)):
            self.store.put(key, expected[key])

    def spec(self, path: str) -> ArraySpec:
        """Return what an array is.

        Raises:
            StorageError: It does not exist.
        """
        if path not in self._specs:
            self._specs[path] = stored_spec(self.store, path)
        return self._specs[path]

    def key(self, path: str, position: tuple[int, ...]) -> str:
        """Return the object of the run that holds a chunk."""
        return self.spec(path).key(position)

    def write(self, path: str, position: tuple[int, ...], values: Array) -> ChunkRecord:
        """Write one whole chunk. Memory is twice that of the chunk.

        Args:
            path: The array.
            position: The chunk's index in the grid.
            values: Everything of the chunk that lies inside the array's bounds.
        """
        assert not self._read_only, "these arrays are open for reading only"
        spec = self.spec(path)
        region = spec.region(position)
        shape = tuple(part.stop - part.start for part in region)
        assert values.shape == shape, f"{path}{position}: {values.shape} != {shape}"
        contents = values if spec.dtype == "str" else np.ascontiguousarray(values, dtype=_little_endian(spec))
        encoded = _encode(spec, contents)
        stored: int = google_crc32c.value(encoded)
        body = encoded if isinstance(encoded, bytes) else encoded.data
        self.store.put(spec.key(position), b"".join((body, stored.to_bytes(CHECKSUM_BYTES, "little"))))
        return ChunkRecord(
            array=path,
            position=position,
            start=tuple(part.start for part in region),
            shape=shape,
            crc32c=f"{stored:08x}" if encoded is contents else checksum(contents),
            nbytes=contents.nbytes if spec.dtype != "str" else len(_terminated(contents)),
        )

    def read(self, path: str, position: tuple[int, ...], *, committed: str | None = None) -> Array:
        """Read one whole chunk, clipped to the array's bounds; the array is the caller's own. Memory is O(chunk).

        Args:
            path: The array.
            position: The chunk's index in the grid.
            committed: The checksum of what was committed, where it is known.

        Raises:
            CorruptChunkError: Its bytes fail their checksum, or it is not what was committed; where that is not known,
                if it holds fill values: it is damaged or gone.
        """
        spec = self.spec(path)
        data = self.store.get_writable(spec.key(position))
        values, found = self._checked(spec, position, data)
        if committed is not None and found != committed:
            raise CorruptChunkError(f"{self._where(spec, position)}: another chunk was committed. {REMEDY}")
        if committed is None and values.size and _holds_fill(values):
            raise CorruptChunkError(f"{self._where(spec, position)}: the chunk is missing or incomplete. {REMEDY}")
        return values if spec.dtype == "str" else np.ascontiguousarray(values, dtype=spec.dtype)

    def object_bytes(self, path: str) -> int:
        """Return the size of the object of a chunk of numbers."""
        return self.spec(path).chunk_bytes + CHECKSUM_BYTES

    def take(
        self,
        path: str,
        position: tuple[int, ...],
        pick: Callable[[Array], Array],
        memory: bytearray,
        *,
        committed: str,
    ) -> Array:
        """Read one whole chunk of numbers into memory of the caller's, check all of it, and return something of it.

        Args:
            path: The array.
            position: The chunk's index in the grid.
            pick: Copies what is wanted out of the chunk, which is clipped to the array's bounds.
            memory: Of at least :meth:`object_bytes`, which nobody else uses meanwhile.
            committed: The checksum of what was committed.

        Raises:
            CorruptChunkError: Its bytes fail their checksum, or it is not what was committed.
        """
        spec = self.spec(path)
        size = self.store.read_into(spec.key(position), memory)
        data = None if size is None else memoryview(memory)[:size]
        # An object that is larger than its chunk may be is cut short by the memory, and damaged for its size.
        whole = data if size is None or size <= len(memory) else b""
        values, found = self._checked(spec, position, whole)
        if found != committed:
            raise CorruptChunkError(f"{self._where(spec, position)}: another chunk was committed. {REMEDY}")
        return pick(values)

    def matches(self, record: ChunkRecord) -> str | None:
        """Compare a chunk with its record; return what is wrong, None when nothing is. Memory is O(chunk).

        Raises:
            StorageError: The chunk cannot be read, or its array is not there.
        """
        where = f"{record.array}, chunk {list(record.position)}"
        try:
            spec = self.spec(record.array)
            if len(record.position) != len(spec.shape):
                return f"{where}: the array has {len(spec.shape)} axes"
            region = spec.region(record.position)
            start, shape = tuple(part.start for part in region), tuple(part.stop - part.start for part in region)
            if not all(shape):
                return f"{where}: beyond the array's end at {list(spec.shape)}"
            if record.shape and (record.start, record.shape) != (start, shape):
                return (
                    f"{where}: committed were {list(record.shape)} values from {list(record.start)} on, the grid has "
                    f"{list(shape)} from {list(start)}"
                )
            data = self.store.get_writable(spec.key(record.position))
            _, found = self._checked(spec, record.position, data)
        except CorruptChunkError as error:
            return error.message
        return None if found == record.crc32c else f"{where}: crc32c is {found}, committed was {record.crc32c}"

    def _checked(
        self, spec: ArraySpec, position: tuple[int, ...], data: bytearray | memoryview | bytes | None
    ) -> tuple[Array, str]:
        """Return the values of a chunk inside the array's bounds and their checksum, summing no byte twice if it can."""
        if data is None:
            raise CorruptChunkError(f"{self._where(spec, position)}: the chunk is missing or incomplete. {REMEDY}")
        with self._lock:
            self.reads = Reads(self.reads.num_chunks + 1, self.reads.num_bytes + len(data))
        length = len(data) - CHECKSUM_BYTES
        content = np.frombuffer(data, np.uint8, max(length, 0))
        stored = google_crc32c.value(content)
        has_length = length >= 0 and (spec.dtype == "str" or length == spec.chunk_bytes)
        if not has_length or stored != int.from_bytes(data[length:], "little"):
            raise CorruptChunkError(f"{self._where(spec, position)}: its bytes are damaged. {REMEDY}")
        values = _decode(spec, position, content)
        is_all = spec.dtype != "str" and values.shape == spec.chunks
        return values, f"{stored:08x}" if is_all else checksum(values)

    def _where(self, spec: ArraySpec, position: tuple[int, ...]) -> str:
        return f"{self.store.url}: {spec.path}, chunk {list(position)}"


def checksum(values: Array) -> str:
    """Return crc32c of the values' little-endian bytes (UTF-8 with a terminator for strings), in hexadecimal."""
    if values.dtype.kind in "OTU":
        return f"{google_crc32c.value(_terminated(values)):08x}"
    little = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    return f"{google_crc32c.value(little):08x}"


def _little_endian(spec: ArraySpec) -> np.dtype[Any]:
    return np.dtype(spec.dtype).newbyteorder("<")


def _terminated(texts: Array) -> bytes:
    return b"".join(str(text).encode() + b"\0" for text in texts.ravel())


def _encode(spec: ArraySpec, contents: Array) -> Array | bytes:
    """Return the bytes of a chunk as zarr's codec makes them; the values themselves where those are the bytes."""
    if spec.dtype == "str":
        encoded = [str(text).encode() for text in contents.ravel()]
        lengths = [len(text).to_bytes(LENGTH_BYTES, "little") for text in encoded]
        count = len(encoded).to_bytes(LENGTH_BYTES, "little")
        return count + b"".join(part for pair in zip(lengths, encoded, strict=True) for part in pair)
    if contents.shape == spec.chunks:
        return contents
    padded = np.full(spec.chunks, spec.fill_value, _little_endian(spec))
    padded[tuple(slice(size) for size in contents.shape)] = contents
    return padded


def _decode(spec: ArraySpec, position: tuple[int, ...], content: Array) -> Array:
    """Return the values of a chunk inside the array's bounds, without copying numbers."""
    shape = tuple(part.stop - part.start for part in spec.region(position))
    if spec.dtype != "str":
        whole = content.view(_little_endian(spec)).reshape(spec.chunks)
        return whole[tuple(slice(size) for size in shape)]
    data, at, texts = content.tobytes(), LENGTH_BYTES, []
    count = int.from_bytes(data[:LENGTH_BYTES], "little")
    if count != int(np.prod(spec.chunks)):
        raise CorruptChunkError(f"{spec.path}, chunk {list(position)}: holds {count} texts. {REMEDY}")
    for _ in range(count):
        start = at + LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        texts.append(data[start:at].decode(errors="replace"))
    return np.array(texts, dtype=object).reshape(spec.chunks)[tuple(slice(size) for size in shape)]


def _holds_fill(values: Array) -> bool:
    if values.dtype.kind == "f":
        # NaN survives summation, which is several times faster than a test of every value; a sum may also overflow to NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = bool(np.isnan(values.sum()))
        return suspicious and bool(np.isnan(values).any())
    if values.dtype.kind == "i":
        return bool((values == np.iinfo(values.dtype).min).any())
    return any(text == "" for text in values.ravel())
