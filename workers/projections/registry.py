"""From the projection section to a random map."""

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.projection import Projection
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.gaussian import GaussianProjection
from ntkpipe.workers.projections.khatri_rao import KhatriRaoProjection
from ntkpipe.workers.projections.kronecker import KroneckerProjection
from ntkpipe.workers.projections.rademacher import RademacherProjection
from ntkpipe.workers.projections.sjlt import SparseProjection
from ntkpipe.workers.projections.srht import SubsampledHadamardProjection
from ntkpipe.workers.projections.tensor_sketch import TensorSketchProjection


def make_projection(config: Projection) -> AbstractProjection:
    """Return the random map of a configuration.

    Raises:
        ConfigError: The kind is ``none``, which is the absence of a map.
    """
    dim, seed = config.resolved_dim, config.seed
    match config.resolved_kind:
        case "rademacher":
            return RademacherProjection(dim=dim, seed=seed)
        case "sjlt":
            return SparseProjection(dim=dim, nonzeros=2 * config.nonzeros, seed=seed)
        case "tensorsketch":
            return TensorSketchProjection(dim=dim, seed=seed)
        case "gaussian":
            return GaussianProjection(dim=dim, seed=seed)
        case "srht":
            return SubsampledHadamardProjection(dim=dim, seed=seed)
        case "khatri-rao":
            return KhatriRaoProjection(dim=dim, seed=seed)
        case "kronecker":
            return KroneckerProjection(dim=dim, seed=seed)
    raise ConfigError("a projection of kind 'none' maps nothing; name another one, or 'auto'.")
