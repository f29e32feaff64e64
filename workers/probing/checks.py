"""What can only fail later is refused before anything is computed."""

import torch

from ntkpipe.configs.analyses import FidelityAnalysis, NeighborsAnalysis
from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.names import CLOSED_FORMS, RANDOM_FEATURES
from ntkpipe.configs.run import RunConfig
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.kernels.closed_form.registry import make_closed_form
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.kernels.random_features.registry import make_random_features
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.sources.files import file_digests


def check_kernels(config: RunConfig, num_outputs: int, splits: dict[str, SplitSource]) -> None:
    """Refuse kernels of a model whose labels or class do not exist, on the smallest input that shows it."""
    for kernel in config.model_kernels:
        functional = kernel_definition(kernel.kind).functional
        if functional is not None:
            for source in splits.values():
                _check_functional(kernel, functional, source, num_outputs)
        if kernel.precondition is not None and kernel.precondition.kind == "fisher":
            _check_functional(kernel, Functional("loss"), splits[config.data.train_split], num_outputs)


def _check_functional(kernel: EmpiricalKernel, functional: Functional, source: SplitSource, num_outputs: int) -> None:
    try:
        functional.cotangents(torch.zeros(len(source), num_outputs), source.labels)
    except ConfigError as error:
        raise ConfigError(f"kernel {kernel.label!r} on split {source.name!r}: {error.message}") from None


def check_formulas(config: RunConfig, inputs: torch.Tensor) -> dict[str, str]:
    """Try closed forms and random features on a few samples.

    Returns:
        Digests of the files that they are defined by.

    Raises:
        ConfigError: The samples do not fit a kernel; it is named.
        NumericalError: A kernel that is fitted cannot be, or overflows.
    """
    digests: dict[str, str] = {}
    samples = inputs.double() if inputs.is_floating_point() else inputs
    for kernel in config.kernels:
        try:
            if kernel.kind in CLOSED_FORMS:
                make_closed_form(kernel).diagonal(samples)
            elif kernel.kind in RANDOM_FEATURES:
                make_random_features(kernel).features(samples)
            else:
                continue
        except (ConfigError, NumericalError) as error:
            raise type(error)(f"kernel {kernel.label!r}: {error.message}") from None
        digests |= file_digests(kernel)
    return digests


def check_analyses(
    config: RunConfig, geometry: Geometry, splits: dict[str, SplitSource], sample_shape: tuple[int, ...]
) -> None:
    """Refuse analyses that could only fail, before everything else has been computed."""
    """Refuse analyses that could only fail, before everything else has been computed."""
    for analysis in config.analyses:
        if not isinstance(analysis, FidelityAnalysis | NeighborsAnalysis):
            continue
        for name in (analysis.split, geometry.train_split):
            if geometry.splits[name].labels != "classes":
                raise ConfigError(
                    f"analysis {analysis.name!r} compares classes, but split {name!r} has no integer labels."
                )
        classes = splits[analysis.split].labels
        if (
            isinstance(analysis, FidelityAnalysis)
            and classes is not None
            and int(classes.max()) >= geometry.num_outputs
        ):
            raise ConfigError(
                f"analysis {analysis.name!r}: split {analysis.split!r} has class {int(classes.max())}, but the network "
                f"has {geometry.num_outputs} outputs."
            )
        images = len(sample_shape) == 2 or (len(sample_shape) == 3 and sample_shape[0] in (1, 3))
        if isinstance(analysis, NeighborsAnalysis) and not images:
            raise ConfigError(
                f"analysis {analysis.name!r} shows images of shape (1, H, W), (3, H, W) or (H, W); the samples are "
                f"{sample_shape}. Leave it out; `ntkpipe query RUN neighbors/KERNEL` works for all data."
            )
