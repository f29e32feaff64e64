"""From what a service sends to arrays and neighbors; whatever is sent, nothing else than numbers comes of it."""

import io
import math

import numpy as np
from numpy.lib import format as npy

from ntkpipe.pipeline.query.names import Nearest
from ntkpipe.storage.arrays import Array


def array_of(content: bytes) -> Array:
    """Return the array of an npy file; nothing but its own numbers is allocated or executed.

    Raises:
        ValueError: It is none, holds something else than numbers, or has another size than it says.
    """
    file = io.BytesIO(content)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in readers:
        raise ValueError(f"version {version} of npy")
    shape, is_fortran, dtype = readers[version](file)
    if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"{shape} values of {dtype} in {len(content)} bytes")
    values = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    return values.copy()


def nearest_of(lists: list[list[tuple[int, float]]]) -> Nearest:
    """Return neighbors of samples that have them in different numbers."""
    shape = (len(lists), max(map(len, lists), default=0))
    positions, values = np.full(shape, -1, dtype=np.int64), np.full(shape, np.nan)
    for row, pairs in enumerate(lists):
        for column, (position, value) in enumerate(pairs):
            positions[row, column], values[row, column] = position, np.nan if value is None else value
    return Nearest(positions, values)


def pairs_of(found: Nearest) -> list[list[tuple[int, float]]]:
    """Return the neighbors of each sample, without the places that stand for none."""
    return [
        [(int(position), float(value)) for position, value in zip(*row, strict=True) if position >= 0]
        for row in zip(found.positions, found.values, strict=True)
    ]
