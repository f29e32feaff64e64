"""The metadata of a run's arrays: what zarr keeps in ``zarr.json``, made by zarr from what the arrays are meant to be.

Readers of ntkpipe know the arrays from the manifest; other programs know them from these objects. They are a function
of the run, so that what is damaged or lost is written again.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
import zarr.storage
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import Buffer

from ntkpipe.configs.canonical import differences
from ntkpipe.configs.errors import StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.errors import storage_errors

METADATA = "zarr.json"


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

    @property
    def fill_value(self) -> Any:
        """What stands for values that were never written, and is refused when it is read."""
        if self.dtype == "str":
            return ""
        return float("nan") if self.dtype.startswith("float") else np.iinfo(np.dtype(self.dtype)).min

    def region(self, position: tuple[int, ...]) -> tuple[slice, ...]:
        """Return the range of a chunk, clipped to the array; empty beyond its end."""
        return tuple(
            slice(min(index * chunk, size), min((index + 1) * chunk, size))
            for index, chunk, size in zip(position, self.chunks, self.shape, strict=True)
        )

    def key(self, position: tuple[int, ...]) -> str:
        """Return the object of the run that holds a chunk."""
        return "/".join((layout.DATA, self.path, "c", *map(str, position)))


def documents(specs: Iterable[ArraySpec], attributes: dict[str, Any]) -> dict[str, bytes]:
    """Return all metadata of a run by key: of its group, with attributes, of the groups in it, and of its arrays."""
    objects: dict[str, Buffer] = {}
    root = zarr.create_group(zarr.storage.MemoryStore(objects), attributes=attributes)
    for spec in specs:
        root.create_array(
            spec.path,
            shape=spec.shape,
            chunks=spec.chunks,
            dtype=str if spec.dtype == "str" else spec.dtype,
            fill_value=spec.fill_value,
            filters=None,
            compressors=[Crc32cCodec()],
            dimension_names=spec.dimensions,
            attributes=spec.attributes,
        )
    return {f"{layout.DATA}/{key}": value.to_bytes() for key, value in objects.items()}


def stored_spec(store: AbstractStore, path: str) -> ArraySpec:
    """Return what the metadata of an array says, for readers that know nothing of the run.

    Raises:
        StorageError: There is no such array, or it is not one of a run.
    """
    document = store.get(f"{layout.DATA}/{path}/{METADATA}")
    with storage_errors(store.url):
        try:
            stored = {} if document is None else {METADATA: _buffer(document)}
            array = zarr.open_array(zarr.storage.MemoryStore(stored), mode="r")
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            raise StorageError(
                f"{store.url} has no readable array {path}. `ntkpipe verify --repair` restores lost metadata."
            ) from None
    dtype = "str" if array.dtype.kind in "OTU" else array.dtype.name
    names = array.metadata.dimension_names if array.metadata.zarr_format == 3 else None
    spec = ArraySpec(path, array.shape, array.chunks, dtype, tuple(name or "" for name in names or ()), {})
    codecs = [codec.to_dict()["name"] for codec in getattr(array.metadata, "codecs", ())]
    if codecs != ["vlen-utf8" if dtype == "str" else "bytes", "crc32c"]:
        raise StorageError(f"{store.url}: array {path} is encoded with {codecs}, which no run is.")
    return spec


def problems(store: AbstractStore, expected: dict[str, bytes], *, exactly: bool) -> Iterator[tuple[str, str]]:
    """Yield key and defect of all metadata that is lost or does not say what it must.

    Args:
        store: Of the run.
        expected: By key, what this version of zarr writes.
        exactly: Whether it must be that to the byte. Other versions of zarr may say the same in other words.
    """
    for key, found in store.get_many(expected):
        text = _problem(expected[key], found, exactly)
        if text is not None:
            yield key, text


def _problem(expected: bytes, found: bytes | None, exactly: bool) -> str | None:
    if found is None:
        return "is missing"
    if found == expected:
        return None
    try:
        told = list(differences(_content(found), _content(expected)))
    except (KeyError, TypeError, ValueError, RecursionError):
        return "is damaged: it is no metadata of zarr"
    if told:
        return f"is damaged: {told[0][0]} is {told[0][1]!r}, expected {told[0][2]!r}"
    return "is damaged: it says the same in words that zarr has not written" if exactly else None


def _content(document: bytes) -> dict[str, Any]:
    """Return a document in the words of this version of zarr."""
    node = zarr.open(zarr.storage.MemoryStore({METADATA: _buffer(document)}), mode="r")
    found: dict[str, Any] = json.loads(json.dumps(node.metadata.to_dict(), default=str))
    return found


def _buffer(document: bytes) -> Buffer:
    return zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(document)
