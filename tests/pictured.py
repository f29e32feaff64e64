"""A small run of images whose kernels are known, for tests of pictures; and data that a run must not be made to show."""

import os
import time

import numpy as np
import torch

import ntkpipe
from ntkpipe.workers.sources.samples import Samples

HOSTILE = "<img src=x onerror=alert(1)>/../%2e%2e"
"""An id that is one of the run's."""

STORE = {"shard_rows": 8, "block_rows": 8}
KERNELS = [
    {"kind": "gaussian", "bandwidth": 2.0, "name": "wide"},
    {"kind": "gaussian", "bandwidth": 0.7, "name": "narrow"},
]
LOADING_SECONDS = "PICTURED_LOADING_SECONDS"
"""A variable of the environment: what :func:`load_and_tell` takes."""

RAN = []
"""Calls of :func:`load_and_tell`."""


def images(num, seed):
    """Return images of (1, 5, 4) pixels in [0, 1], and their classes: bright above, below or nowhere."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, num)
    pixels = generator.uniform(0, 0.3, (num, 1, 5, 4))
    pixels[classes == 0, :, :2] += 0.7
    pixels[classes == 1, :, 3:] += 0.7
    return pixels.astype(np.float32), classes


def ids(num, split):
    """Return names of samples, the first of which is hostile."""
    return [HOSTILE, *(f"{split}-{position}" for position in range(1, num))]


def save(folder, num=30, num_test=11):
    """Write the arrays of both splits, and return the section of the data that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for split, size in (("train", num), ("test", num_test)):
        pixels, classes = images(size, seed=len(split))
        np.savez(folder / f"{split}.npz", inputs=pixels, labels=classes, ids=np.array(ids(size, split)))
        splits[split] = {"kind": "arrays", "inputs": str(folder / f"{split}.npz")}
    return {"splits": splits}


def make_run(url, data, **changes):
    """Compute a run."""
    ntkpipe.run({"name": "pictured", "data": data, "kernels": KERNELS, "store": STORE} | changes, url)
    return ntkpipe.open_run(url)


def load_and_tell(texts=None, shape=(1, 5, 4), num=6):
    """Return samples, and leave a trace of having run."""
    RAN.append(1)
    time.sleep(float(os.environ.get(LOADING_SECONDS, "0")))
    generator = np.random.default_rng(0)
    return Samples(torch.from_numpy(generator.uniform(0, 1, (num, *shape)).astype(np.float32)), texts=texts)
