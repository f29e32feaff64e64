"""Arrays of numbers in files that a kernel's section names."""

import io
from zipfile import BadZipFile

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.storage.assets import check_unpacked, read_asset

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.generic]]

_UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, OSError, EOFError, BadZipFile)
"""What NumPy raises for files that are damaged, of another format, or hold objects."""


def read_array(location: str) -> Numbers:
    """Return the array of an npy file in its own type.

    Raises:
        ConfigError: The file cannot be read, or does not hold one array of finite numbers.
    """
    data = read_asset(location)
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except _UNREADABLE as error:
        raise ConfigError(f"{location} is not an npy file: {error}") from None
    if not isinstance(found, np.ndarray) or not _are_numbers(found):
        raise ConfigError(f"{location} must hold one array of finite numbers; save it with numpy.save.")
    return found


def read_arrays(location: str, *names: str) -> tuple[torch.Tensor, ...]:
    """Return arrays of an npz file by their names, in float64.

    Raises:
        ConfigError: The file cannot be read, or one of the arrays is missing, or not of finite numbers.
    """
    data = read_asset(location)
    check_unpacked(location, data)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = [file[name] for name in names]
    except _UNREADABLE as error:
        raise ConfigError(
            f"{location} is not an npz file with {' and '.join(map(repr, names))}: {error}; save it with numpy.savez."
        ) from None
    for name, array in zip(names, arrays, strict=True):
        if not _are_numbers(array):
            raise ConfigError(f"{name!r} in {location} has entries that are not finite numbers; remove them.")
    return tuple(torch.from_numpy(array.astype(np.float64)) for array in arrays)


def _are_numbers(array: Numbers) -> bool:
    return array.dtype.kind in "biuf" and bool(np.isfinite(array).all())
