"""Small objects of tasks: pictures, tables, documents, single arrays."""

import io
import math

import google_crc32c
import numpy as np
from numpy.lib import format as npy

from ntkpipe.configs.errors import CorruptChunkError, NotFoundError
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.records import ObjectRecord, Receipt
from ntkpipe.storage.stores.base import AbstractStore


def put_object(store: AbstractStore, key: str, data: bytes) -> ObjectRecord:
    """Write a small object of a task and return its record for the receipt."""
    store.put(key, data)
    return ObjectRecord(key=key, crc32c=object_checksum(data), nbytes=len(data))


def read_object(store: AbstractStore, receipt: Receipt, key: str) -> bytes:
    """Return an object that a finished task has written.

    Raises:
        NotFoundError: The task has written no such object.
        CorruptChunkError: It is gone, or not what was committed.
    """
    record = next((record for record in receipt.objects if record.key == key), None)
    if record is None:
        raise NotFoundError(f"{store.url}: {receipt.stage} task {receipt.task} has written no {key}.")
    data = store.get(key)
    if data is None or object_checksum(data) != record.crc32c:
        raise CorruptChunkError(
            f"{store.url}/{key} is {'missing' if data is None else 'damaged'}. Run `ntkpipe verify` to see what is affected, "
            "and `ntkpipe verify --repair` to compute it again."
        )
    return data


def npy_bytes(values: Array) -> bytes:
    """Return an array as the content of an ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def read_npy(data: bytes) -> Array:
    """Return the array of an ``.npy`` file's content; nothing but its own numbers is allocated or executed.

    Raises:
        ValueError: It is none, holds something else than numbers, or has another size than it says.
    """
    file = io.BytesIO(data)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of npy")
    shape, is_fortran, dtype = readers[version](file)
    if (
        dtype.kind not in "biuf"
        or min(shape, default=0) < 0
        or math.prod(shape) * dtype.itemsize != len(data) - file.tell()
    ):
        raise ValueError(f"{shape} values of {dtype} in {len(data)} bytes")
    values = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    return values.copy()


def object_checksum(data: bytes) -> str:
    """Return crc32c of an object's bytes, in hexadecimal."""
    return f"{google_crc32c.value(data):08x}"
