"""The kinds of kernels that need no model, by family. Kinds of kernels of a model are in ``empirical.py``."""

from typing import Final

CLOSED_FORMS: Final = (
    "gaussian",
    "laplace",
    "matern",
    "dispersal",
    "polynomial",
    "cosine",
    "arc_cosine",
    "zonal",
    "kerple",
    "ntk",
    "nngp_limit",
    "cntk",
    "gntk",
    "gntk_node",
    "signature",
    "neural_signature",
    "deep_kernel_machine",
)
"""Formulas of two samples."""

RANDOM_FEATURES: Final = (
    "fourier_features",
    "positive_features",
    "spectral_mixture_features",
    "universal_features",
    "graph_walk_features",
    "multilayer_features",
)
"""Random maps of single samples."""

DERIVED: Final = ("sum", "product", "power", "scaled", "normalised", "centred", "posterior", "ensemble")
"""Made of other kernels of the run."""
