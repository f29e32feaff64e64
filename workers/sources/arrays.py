"""Samples from NumPy files, which are never unpickled."""

import io
from typing import Any

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.sources import ArrayData
from ntkpipe.storage.assets import read_asset
from ntkpipe.workers.sources.samples import Samples


def load_arrays(config: ArrayData) -> Samples:
    """Read inputs, labels and ids.

    Raises:
        ConfigError: A file is missing, is no NumPy file, or holds something other than numbers.
    """
    labels, ids = None, None
    loaded = _load_numpy(config.inputs)
    if isinstance(loaded, dict):
        if "inputs" not in loaded:
            raise ConfigError(f"{config.inputs} has no array 'inputs'; found: {', '.join(sorted(loaded))}")
        inputs, labels, ids = loaded["inputs"], loaded.get("labels"), loaded.get("ids")
    else:
        inputs = loaded
    if inputs.ndim == 0:
        raise ConfigError(f"{config.inputs} holds a single number; expected an array of shape (N, ...).")
    if config.labels is not None:
        labels = _load_numpy(config.labels)
        if isinstance(labels, dict):
            raise ConfigError(f"{config.labels}: expected one .npy array, found an .npz archive.")
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


def _load_numpy(url: str) -> Any:
    try:
        loaded = np.load(io.BytesIO(read_asset(url)), allow_pickle=False)
        return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (ValueError, EOFError, OSError) as error:
        raise ConfigError(f"{url} is not a readable .npy or .npz file of plain numbers: {error}") from None
