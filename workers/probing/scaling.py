"""The shapes of a run with other numbers of samples, without the samples. Plain arithmetic."""

from collections.abc import Mapping

from ntkpipe.configs.errors import ConfigError, PlanError
from ntkpipe.configs.kernels.derived import PosteriorConfig
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.solve.centres import CentreSolve
from ntkpipe.configs.units import size
from ntkpipe.storage.records import Geometry, KernelGeometry


def scaled_geometry(config: RunConfig, geometry: Geometry, samples: Mapping[str, int]) -> Geometry:
    """Return the geometry of a run whose splits have other sizes; factors of solutions are left out.

    Labels, classes and everything that belongs to a sample or to a kernel stay as they are. What depends on the number
    of training samples is checked again: the samples that a posterior is conditioned on, and the centres of a solution.

    Raises:
        ConfigError: A solution asks for more centres than there are samples.
        PlanError: The matrix of a posterior does not fit a worker's memory.
    """
    splits = {
        name: split.model_copy(update={"num_samples": samples.get(name, split.num_samples)})
        for name, split in geometry.splits.items()
    }
    num_train = splits[geometry.train_split].num_samples
    kernels = tuple(_scaled_kernel(config, kernel, num_train) for kernel in geometry.kernels)
    for solve in config.solve:
        size = num_train * geometry.matrix(solve.kernel)[0].width
        if isinstance(solve, CentreSolve) and solve.centres > size:
            raise ConfigError(
                f"solution {solve.name!r}: centres = {solve.centres} exceeds the {size} samples; ask for at most {size}."
            )
    return geometry.model_copy(update={"splits": splits, "kernels": kernels, "factors": ()})


def _scaled_kernel(config: RunConfig, kernel: KernelGeometry, num_train: int) -> KernelGeometry:
    derived = kernel.derived
    if not isinstance(derived, PosteriorConfig):
        return kernel
    num = len(derived.given) if isinstance(derived.given, tuple) else min(derived.given or num_train, num_train)
    check_posterior(config, kernel.name, num)
    return kernel.model_copy(update={"statistic_dim": num})


def check_posterior(config: RunConfig, kernel: str, num: int) -> None:
    """Refuse a posterior that is conditioned on more samples than a worker's memory holds the matrix of.

    Raises:
        PlanError: Says what is needed, and what there is.
    """
    needed, allowed = 24 * num**2, int(config.resources.max_worker_bytes)
    if needed > allowed:
        raise PlanError(
            f"kernel {kernel!r} is conditioned on {num:,} samples, whose matrix and its factor need "
            f"{size(needed, at_least=True)}; resources.max_worker_bytes is {size(allowed)}. Condition on fewer with "
            "given, or raise it."
        )
