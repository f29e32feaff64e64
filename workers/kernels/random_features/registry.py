"""From the section of a random map to the map; modules are loaded when a map of theirs is first made."""

import importlib
from typing import cast

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures

_HOMES = {
    "fourier_features": "fourier:FourierFeatures",
    "positive_features": "positive:PositiveFeatures",
    "spectral_mixture_features": "spectral_mixture:SpectralMixtureFeatures",
    "universal_features": "universal:UniversalFeatures",
    "graph_walk_features": "graph_walks:GraphWalkFeatures",
    "multilayer_features": "multilayer:MultilayerFeatures",
}


def make_random_features(config: KernelSection) -> AbstractRandomFeatures:
    """Return the map of a section.

    Raises:
        ConfigError: The section is of no random map, or a file that it names cannot be used.
    """
    if config.kind not in _HOMES:
        raise ConfigError(f"kernel {config.kind!r} is no map of random features. There are: {', '.join(_HOMES)}.")
    module, _, name = _HOMES[config.kind].partition(":")
    return cast(AbstractRandomFeatures, getattr(importlib.import_module(f"{__package__}.{module}"), name)(config))
