"""From the projection section to a random map."""

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.projection import Projection
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.rademacher import RademacherProjection
from ntkpipe.workers.projections.sjlt import SparseProjection


def make_projection(config: Projection) -> AbstractProjection:
    """Return the random map of a configuration.

    Raises:
        ConfigError: The kind is ``none``, which is the absence of a map, or a sparse map has 2^31 features or more.
    """
    if config.resolved_kind == "rademacher":
        return RademacherProjection(dim=config.dim, seed=config.seed)
    if config.resolved_kind == "sjlt":
        if config.dim >= 2**31:
            raise ConfigError(f"projection dim is {config.dim}; a sparse map has less than 2^31 features. Lower dim.")
        return SparseProjection(dim=config.dim, nonzeros=config.nonzeros, seed=config.seed)
    raise ConfigError("a projection of kind 'none' maps nothing; name 'rademacher', 'sjlt' or 'auto'.")
