"""The features of random maps as a hash, for tests that compare processes; imports nothing that takes long."""

import hashlib

import torch

from ntkpipe.configs.loading import load_kernel
from ntkpipe.workers.kernels.random_features.registry import make_random_features

SECTIONS = [
    {"kind": "fourier_features", "of": "matern", "nu": 0.7, "coupling": "orthogonal", "dim": 20},
    {"kind": "fourier_features", "of": "laplace", "norm": "l1", "dim": 20},
    {"kind": "fourier_features", "frequencies": "fastfood", "dim": 20},
    {"kind": "positive_features", "coupling": "simplex_plus", "dim": 20},
    {"kind": "spectral_mixture_features", "weights": [1], "means": [[0, 1, 2]], "scales": [[1, 1, 1]], "dim": 20},
    {"kind": "universal_features", "function": "erf", "dim": 20},
    {"kind": "multilayer_features", "depth": 2, "dim": 20},
]


def digest():
    """The features of all sections on fixed samples."""
    x = torch.arange(12, dtype=torch.float64).view(4, 3) / 7
    state = hashlib.sha256()
    for section in SECTIONS:
        options = {name: value for name, value in section.items() if name != "kind"}
        state.update(make_random_features(load_kernel(section["kind"], options)).features(x).numpy().tobytes())
    return state.hexdigest()
