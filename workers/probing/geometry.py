"""The shape of everything a run will store."""

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.derived import CentredConfig, DerivedConfig, PosteriorConfig, SumConfig
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.matrices import MatrixTraits, parents_of
from ntkpipe.configs.kernels.names import RANDOM_FEATURES
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.solve.tiled import TileCholeskySolve
from ntkpipe.configs.solve.union import SolveConfig
from ntkpipe.storage.records import FactorGeometry, Geometry, KernelGeometry, SplitGeometry
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.kernels.random_features.registry import make_random_features
from ntkpipe.workers.kernels.views import penultimate
from ntkpipe.workers.probing.models import ProbedModel
from ntkpipe.workers.probing.scaling import check_posterior
from ntkpipe.workers.sources.data import SplitSource


def plan_geometry(config: RunConfig, splits: dict[str, SplitSource], model: ProbedModel | None) -> Geometry:
    """Return the shapes of all arrays of a run.

    Raises:
        ConfigError: A solution's targets, or a set that a kernel is conditioned on, do not fit the data.
    """
    num_classes = max(
        (int(s.labels.max()) + 1 for s in splits.values() if s.labels is not None and s.labels.dim() == 1), default=0
    )
    shapes = {
        name: SplitGeometry(
            num_samples=len(source), labels=source.label_kind, num_targets=_num_targets(source, num_classes)
        )
        for name, source in splits.items()
    }
    num_outputs = model.first.outputs_BC.shape[1] if model is not None else 0
    kernels = _kernels(config, splits, model)
    _check_features(config, kernels)
    return Geometry(
        splits=shapes,
        train_split=config.data.train_split,
        kernels=kernels,
        pairs=config.data.resolved_pairs,
        solutions=tuple(solve.name for solve in config.solve),
        solution_targets=tuple(_solution_targets(config, solve, shapes, num_outputs) for solve in config.solve),
        solution_splits=tuple(config.predicted_splits(solve.kernel) for solve in config.solve),
        num_outputs=num_outputs,
        members=tuple(config.model.members) if config.model is not None else (),
        shard_rows=config.store.shard_rows,
        block_rows=config.store.block_rows,
        dtype=config.store.dtype,
    )


def with_factors(config: RunConfig, geometry: Geometry) -> Geometry:
    """Return the geometry with the factors that solutions store; their tiles are whole blocks of the kernel."""
    factors = []
    for solve in config.solve:
        if isinstance(solve, TileCholeskySolve):
            width = geometry.matrix(solve.kernel)[0].width
            size = geometry.splits[geometry.train_split].num_samples * width
            block = geometry.block_rows * width
            tile_rows = min(size, -(-solve.tile_rows // block) * block)
            factors.append(FactorGeometry(name=solve.name, size=size, tile_rows=tile_rows, dtype=solve.precision))
    return geometry.model_copy(update={"factors": tuple(factors)})


def _check_features(config: RunConfig, kernels: tuple[KernelGeometry, ...]) -> None:
    """Refuse solutions that would be found from features of which some count negatively, or of two members."""
    train = config.data.train_split
    known = {kernel.name: kernel for kernel in kernels}
    for solve in config.solve:
        kernel = known[solve.kernel.partition("@")[0]]
        of_features = kernel.feature_dim is not None and (train, train) not in config.data.resolved_pairs
        if (of_features or solve.needs == "features") and (kernel.num_negative or kernel.cross):
            raise ConfigError(
                f"solution {solve.name!r}: kernel {solve.kernel!r} is not an inner product of one set of features with "
                f"itself. Add the pair [{train}, {train}] to data.pairs and use another kind of solver."
            )


def _kernels(
    config: RunConfig, splits: dict[str, SplitSource], model: ProbedModel | None
) -> tuple[KernelGeometry, ...]:
    matrices = config.matrices
    found: list[KernelGeometry] = []
    for kernel in config.kernels:
        if isinstance(kernel, EmpiricalKernel):
            assert model is not None, "the configuration refuses kernels of a model without one"
            found.append(_empirical(config, kernel, model))
        elif isinstance(kernel, DerivedConfig):
            found.append(_derived(config, kernel, matrices[kernel.label], splits, model, {k.name: k for k in found}))
        elif kernel.kind in RANDOM_FEATURES:
            mapped = make_random_features(kernel)
            found.append(
                KernelGeometry(
                    name=kernel.label,
                    kind=kernel.kind,
                    feature_dim=mapped.dim,
                    groups=(),
                    num_negative=mapped.num_negative,
                )
            )
        else:
            found.append(KernelGeometry(name=kernel.label, kind=kernel.kind, feature_dim=None, groups=()))
    return tuple(found)


def _empirical(config: RunConfig, kernel: EmpiricalKernel, model: ProbedModel) -> KernelGeometry:
    definition, projection = kernel_definition(kernel.kind), config.projection_of(kernel)
    projected = projection.resolved_kind != "none"
    dim = projection.resolved_dim if projected else None
    if definition.source == "penultimate":
        dim = penultimate(model.first).shape[1]
    elif definition.source == "outputs":
        dim = model.first.outputs_BC.shape[1]
    parameters = model.parameters_of(kernel)
    modules = model.modules.get(kernel.label, ())
    fisher = kernel.precondition is not None and kernel.precondition.kind == "fisher"
    return KernelGeometry(
        name=kernel.label,
        kind=kernel.kind,
        feature_dim=dim,
        groups=(modules or tuple(route.name for route in parameters)) if kernel.layerwise else (),
        members=kernel.cross or (tuple(config.model.members) if config.model is not None else ()),
        cross=kernel.cross is not None,
        symmetric=kernel.cross is None and definition.row_entries == definition.column_entries,
        cosine=definition.cosine,
        width=model.first.outputs_BC.shape[1] if definition.per_output else 1,
        sketched=projected,
        modules=modules,
        weights=model.weights.get(kernel.label, {}),
        num_moments=sum(route.numel for route in parameters) if fisher else 0,
    )


def _derived(
    config: RunConfig,
    kernel: DerivedConfig,
    traits: MatrixTraits,
    splits: dict[str, SplitSource],
    model: ProbedModel | None,
    known: dict[str, KernelGeometry],
) -> KernelGeometry:
    members = tuple(config.model.members) if config.model is not None else ()
    if isinstance(kernel, SumConfig):
        _check_components(kernel, known)
    statistic_dim = None
    if isinstance(kernel, CentredConfig):
        statistic_dim = 1
    elif isinstance(kernel, PosteriorConfig):
        statistic_dim = _num_given(config, kernel, splits[config.data.train_split])
    return KernelGeometry(
        name=kernel.label,
        kind=kernel.kind,
        feature_dim=None,
        groups=(),
        symmetric=traits.symmetric,
        width=model.first.outputs_BC.shape[1] if traits.per_output and model is not None else 1,
        derived=kernel,
        parents=parents_of(kernel, members),
        level=traits.level,
        statistic_dim=statistic_dim,
    )


def _check_components(kernel: SumConfig, known: dict[str, KernelGeometry]) -> None:
    for term in kernel.terms:
        groups = known[term.of.partition("@")[0]].groups
        if term.component is not None and term.component not in groups:
            raise ConfigError(f"kernel {kernel.label!r}: {unknown_name('component', term.component, groups)}")


def _num_given(config: RunConfig, kernel: PosteriorConfig, train: SplitSource) -> int:
    """Return how many samples a posterior is conditioned on.

    Raises:
        ConfigError: One of them is not in the training split.
        PlanError: Their matrix does not fit a worker's memory.
    """
    if isinstance(kernel.given, tuple):
        known = set(train.ids)
        for name in kernel.given:
            if name not in known:
                raise ConfigError(f"kernel {kernel.label!r}: split {train.name!r} has no sample {name!r}.")
        num = len(kernel.given)
    else:
        num = min(kernel.given or len(train), len(train))
    check_posterior(config, kernel.label, num)
    return num


def _num_targets(source: SplitSource, num_classes: int) -> int:
    if source.labels is None:
        return 0
    return num_classes if source.labels.dim() == 1 else source.labels.shape[1]


def _solution_targets(config: RunConfig, solve: SolveConfig, splits: dict[str, SplitGeometry], num_outputs: int) -> int:
    """Return T of a solution; refuse targets that the labels cannot give."""
    name = config.data.train_split
    train = splits[name]
    if train.labels == "none" and solve.targets == "values":
        raise ConfigError(f"solution {solve.name!r} needs labels, but split {name!r} has none.")
    num = train.width(solve.targets)
    if not num:
        found = "no labels" if train.labels == "none" else "real labels"
        raise ConfigError(
            f"solution {solve.name!r} asks for one-hot targets, but split {name!r} has {found}; "
            "use `targets: values`, or give integer classes."
        )
    if config.matrices[solve.kernel].per_output and num != num_outputs:
        raise ConfigError(
            f"solution {solve.name!r} solves a kernel of (sample, output) pairs with {num_outputs} outputs, which needs "
            f"as many targets; there are {num}."
        )
    return num
