"""Samples from NumPy files, which are never unpickled."""

import io
import zlib
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.sources import ArrayData
from ntkpipe.storage.assets import check_unpacked, read_asset
from ntkpipe.workers.sources.samples import Samples

NAMES = ("inputs", "labels", "ids")
"""What is read of an ``.npz`` archive; anything else in it is left alone."""

_UNREADABLE = (
    ValueError, EOFError, OSError, LookupError, TypeError, AttributeError,
    MemoryError, NotImplementedError, RuntimeError, BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises for files that are damaged, of another format, hold objects, or claim to be huge."""


def load_arrays(config: ArrayData) -> Samples:
    """Read inputs, labels and ids.

    Raises:
        ConfigError: A file is missing, is no NumPy file, or holds something other than numbers.
    """
    labels, ids = None, None
    loaded = _load_numpy(config.inputs)
    if isinstance(loaded, dict):
        inputs, labels, ids = loaded["inputs"], loaded.get("labels"), loaded.get("ids")
    else:
        inputs = loaded
    if inputs.ndim == 0:
        raise ConfigError(f"{config.inputs} holds a single number; expected an array of shape (N, ...).")
    if config.labels is not None:
        labels = _load_numpy(config.labels, archive=False)
    if config.ids is not None:
        try:
            ids = read_asset(config.ids).decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ConfigError(f"{config.ids} is not UTF-8 text with one sample id per line.") from None
    return Samples(inputs=inputs, labels=labels, ids=None if ids is None else tuple(str(name) for name in ids))


def native(values: Any) -> Any:
    """Return NumPy values in a form that torch takes: this machine's byte order, no wide unsigned integers."""
    if not isinstance(values, np.ndarray):
        return values
    dtype = values.dtype.newbyteorder("=")
    return values.astype(np.int64 if dtype.kind == "u" and dtype.itemsize > 1 else dtype)


def _load_numpy(url: str, *, archive: bool = True) -> Any:
    """Return an array, or, where that is allowed, those of an archive that have a meaning, by name."""
    data = read_asset(url)
    check_unpacked(url, data)
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            return loaded
        if not archive:
            raise ConfigError(f"{url}: expected one .npy array, found an .npz archive.")
        with loaded:
            if "inputs" not in loaded:
                raise ConfigError(f"{url} has no array 'inputs'; found: {', '.join(sorted(loaded))}")
            found = {name: loaded[name] for name in NAMES if name in loaded}
    except ConfigError:
        raise
    except _UNREADABLE as error:
        # Without NumPy's advice to unpickle what is not trusted.
        raise ConfigError(
            f"{url} is not a readable .npy or .npz file of plain numbers: {str(error).partition('. If you trust')[0]}"
        ) from None
    for name, values in found.items():
        if not isinstance(values, np.ndarray):
            raise ConfigError(f"{url}: {name!r} is no array; save the file with numpy.savez.")
    return found
