"""Handwritten digits of 8 x 8 pixels from scikit-learn, and a small convolutional network for them."""

from typing import Literal

import numpy as np
import torch
from torch import nn

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.sources.samples import Samples

TEST_EVERY = 5
"""Every fifth image of each class is a test image."""


def build_model() -> nn.Module:
    """Return the untrained network: two convolutions and two linear layers, 29,914 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 48),
        nn.ReLU(),
        nn.Linear(48, 10),
    )


def load(split: Literal["train", "test"]) -> Samples:
    """Return images (N, 1, 8, 8) in [0, 1] with their classes; 1,433 to train and 364 to test.

    Ids such as ``digits-0042`` count through the original data set.

    Raises:
        ConfigError: scikit-learn is not installed, or the split has another name.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the digits data come with scikit-learn: pip install 'ntkpipe[demo]'") from None
    if split not in ("train", "test"):
        raise ConfigError(f"digits has the splits 'train' and 'test', not {split!r}.")
    bunch = load_digits()
    classes: np.ndarray[tuple[int], np.dtype[np.int64]] = bunch.target
    in_test = np.zeros(len(classes), dtype=bool)
    for number in range(10):
        in_test[np.flatnonzero(classes == number)[::TEST_EVERY]] = True
    positions = np.flatnonzero(in_test if split == "test" else ~in_test)
    images = torch.from_numpy(bunch.images[positions] / 16).float().unsqueeze(1)
    ids = tuple(f"digits-{position:04d}" for position in positions)
    return Samples(images, torch.from_numpy(classes[positions]), ids)
