"""Looking at a model and its data before a run: shapes, routes, costs and fingerprints."""

from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from ntkpipe.configs.analyses import FidelityAnalysis, NeighborsAnalysis
from ntkpipe.configs.canonical import digest
from ntkpipe.configs.errors import ConfigError, NtkPipeError, PlanError
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.solve import SolveConfig
from ntkpipe.storage.records import Geometry, KernelGeometry, SplitGeometry
from ntkpipe.workers.explain import Choice, exact_choices, projected_choices
from ntkpipe.workers.jacobians.coverage import in_double_precision, plan_routes, probe_samples, select_parameters
from ntkpipe.workers.jacobians.engine import BatchJacobian, JacobianEngine, Portion
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.jacobians.routes import ParameterRoute
from ntkpipe.workers.jacobians.truth import GradientCheck, check_gradient, require_passed
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.kernels.features import penultimate
from ntkpipe.workers.memory import measure_footprint
from ntkpipe.workers.passes import PassPlan, WorkerMemory, plan_passes, predict_memory
from ntkpipe.workers.projections.registry import make_projection
from ntkpipe.workers.projections.tensor_sketch import CACHE_BYTES
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.sources.model import DTYPES, load_model, weights_digest


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of a run before its first task."""

    geometry: Geometry
    routes: tuple[ParameterRoute, ...]
    fingerprints: dict[str, str]
    input_digests: dict[str, tuple[str, ...]]
    """Per split, one digest of the inputs of each shard."""
    forward_flops: int
    """Floating point operations of one sample's forward pass."""
    passes: PassPlan
    """How batches are cut to fit a worker."""
    memory: WorkerMemory
    """Predicted peak of a worker."""
    choices: dict[str, dict[str, Choice]]
    """Per kernel and parameter name, how it is computed and why."""
    gradient: GradientCheck
    """Whether the backward pass is the derivative of the forward pass."""
    splits: dict[str, SplitSource]
    projected: frozenset[str]
    """Kernels that are estimated from random features."""

    @property
    def num_parameters(self) -> int:
        """P, shared parameters counted once."""
        return sum(route.numel for route in self.routes)


def probe_run(config: RunConfig) -> Probe:
    """Load the model and the data on this machine's CPU and find out all that a plan needs.

    Raises:
        ConfigError: Model or data cannot be loaded, or do not fit the rest of the configuration.
        CoverageError: The model cannot be differentiated per sample, or its backward pass is not a derivative.
        PlanError: A single sample does not fit a worker's memory.
    """
    model = load_model(config.model)
    splits = {name: SplitSource(name, section) for name, section in config.data.splits.items()}
    train = splits[config.data.train_split]
    inputs = _probe_inputs(config, splits)
    names = select_parameters(model)
    try:
        precise, samples = in_double_precision(model, inputs)
        routes = plan_routes(precise, names, samples)
        gradient = check_gradient(precise, names, samples)
        if config.model.pseudo_gradient == "refuse":
            require_passed(gradient)
    except NtkPipeError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shape = tuple(inputs.shape[1:])
        raise ConfigError(
            f"the model cannot process samples of shape {shape} from split {train.name!r}: {error}"
        ) from None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs[:1])
    engine = JacobianEngine(model, routes)
    first = engine.run(inputs[:1], Portion(frozenset({Functional("sum")})))
    penultimate_dim = penultimate(first).shape[1] if any(kernel.kind == "ck" for kernel in config.kernels) else None
    digests = {name: source.digests(config.store.shard_rows) for name, source in splits.items()}
    fingerprints = {"weights": weights_digest(model), "routes": _routes_digest(routes)}
    if not gradient.passed:
        fingerprints["gradient"] = "pseudo"
    fingerprints |= {f"data.{name}": source.fingerprint(digests[name]) for name, source in splits.items()}
    for kernel in config.kernels:
        projection = config.projection_of(kernel)
        if projection.resolved_kind != "none":
            fingerprints[f"projection.{kernel.label}"] = make_projection(projection).fingerprint()
    geometry = _geometry(config, splits, [route.name for route in routes], first.outputs_BC.shape[1], penultimate_dim)
    _check_kernels(config, geometry, splits)
    _check_analyses(config, geometry, splits, tuple(inputs.shape[1:]))
    passes, memory = _plan_memory(config, geometry, engine, inputs)
    return Probe(
        geometry=geometry,
        routes=routes,
        fingerprints=fingerprints,
        input_digests=digests,
        forward_flops=int(counter.get_total_flops()),
        passes=passes,
        memory=memory,
        choices=_choices(config, geometry, first, passes),
        gradient=gradient,
        splits=splits,
        projected=frozenset(
            name.removeprefix("projection.") for name in fingerprints if name.startswith("projection.")
        ),
    )


def _plan_memory(
    config: RunConfig, geometry: Geometry, engine: JacobianEngine, inputs: torch.Tensor
) -> tuple[PassPlan, WorkerMemory]:
    """Cut batches so that a worker stays within its memory.

    Raises:
        PlanError: It cannot; says how much is needed at the least.
    """
    exact = [
        kernel
        for kernel in config.kernels
        if kernel.kind != "ck" and config.projection_of(kernel).resolved_kind == "none"
    ]
    functionals = {kernel_definition(kernel.kind).functional for kernel in config.kernels} - {None}
    vectors = sum(f.num_vectors(geometry.num_outputs) for f in functionals if f is not None)
    if len(functionals) > 1 and vectors >= geometry.num_outputs and Functional("trace") not in functionals:
        vectors += geometry.num_outputs
    footprint = measure_footprint(engine, inputs[:2])
    predict = partial(
        predict_memory,
        geometry,
        footprint=footprint,
        model_bytes=sum(value.nbytes for value in (*engine.model.parameters(), *engine.model.buffers())),
        input_bytes=inputs[0].nbytes,
        table_bytes=_table_bytes(config, geometry, engine),
        exact_groups=len(engine.names) if exact else None,
    )
    allowed = int(config.resources.max_worker_bytes)
    least = predict(passes=PassPlan(1, 1, 1, 1)).peak_bytes
    if least > allowed:
        raise PlanError(
            f"a worker needs at least {least / 2**20:,.0f} MiB for one sample at a time, but "
            f"resources.max_worker_bytes is {allowed / 2**20:,.0f} MiB. Raise it, or lower store.shard_rows, "
            "store.block_rows or the projection's dim."
        )
    budget = allowed - predict(passes=None).peak_bytes
    limit = config.resources.batch_size
    on_cpu = config.resources.device == "cpu"
    passes = plan_passes(footprint, vectors, budget, limit, keep_rows=bool(exact), on_cpu=on_cpu)
    return passes, predict(passes=passes)


def _table_bytes(config: RunConfig, geometry: Geometry, engine: JacobianEngine) -> int:
    """Return what the tables of all projections may take: at the most a bin and a sign for every coordinate and half."""
    sizes = {name: value.numel() for name, value in engine.model.named_parameters()}
    num_parameters = sum(sizes[name] for name in engine.names)
    vectors: dict[str, int] = {}
    for kernel in config.kernels:
        functional = kernel_definition(kernel.kind).functional
        projection = config.projection_of(kernel)
        if functional is not None and projection.resolved_kind != "none":
            key = projection.model_dump_json()
            vectors[key] = max(vectors.get(key, 0), functional.num_vectors(geometry.num_outputs))
    return sum(min(CACHE_BYTES, 24 * num_parameters * num) for num in vectors.values())


def _choices(
    config: RunConfig, geometry: Geometry, first: BatchJacobian, passes: PassPlan
) -> dict[str, dict[str, Choice]]:
    """Return how every kernel handles every parameter."""
    (factors,) = first.factors.values()
    found = {}
    for kernel in config.kernels:
        functional = kernel_definition(kernel.kind).functional
        if functional is None:
            continue
        vectors = min(functional.num_vectors(geometry.num_outputs), passes.max_vectors)
        projection = config.projection_of(kernel)
        if projection.resolved_kind == "none":
            found[kernel.label] = exact_choices(factors, vectors, passes.gram_samples)
        else:
            found[kernel.label] = projected_choices(factors, vectors, passes.batch_size, make_projection(projection))
    return found


def _routes_digest(routes: tuple[ParameterRoute, ...]) -> str:
    return digest([[route.name, route.description] for route in routes])


def _check_kernels(config: RunConfig, geometry: Geometry, splits: dict[str, SplitSource]) -> None:
    """Refuse kernels whose labels or class do not exist, on the smallest input that shows it."""
    for kernel in config.kernels:
        functional = kernel_definition(kernel.kind).functional
        if functional is None:
            continue
        for name, source in splits.items():
            outputs_BC = torch.zeros(len(source), geometry.num_outputs)
            try:
                functional.cotangents(outputs_BC, source.labels)
            except ConfigError as error:
                raise ConfigError(f"kernel {kernel.label!r} on split {name!r}: {error.message}") from None


def _probe_inputs(config: RunConfig, splits: dict[str, SplitSource]) -> torch.Tensor:
    """Return different samples of all splits, which must have one shape."""
    train = splits[config.data.train_split]
    parts = []
    for name, source in {train.name: train, **splits}.items():
        positions = sorted({round(step * (len(source) - 1) / 15) for step in range(16)})
        parts.append(source.raw(positions))
        if parts[-1].shape[1:] != parts[0].shape[1:] or parts[-1].dtype != parts[0].dtype:
            found, expected = ((tuple(part.shape[1:]), part.dtype) for part in (parts[-1], parts[0]))
            raise ConfigError(
                f"split {name!r} has samples of shape {found[0]} and type {found[1]}, but split {train.name!r} of shape "
                f"{expected[0]} and type {expected[1]}."
            )
    probes = probe_samples(torch.cat(parts))
    return probes.to(DTYPES[config.model.dtype]) if probes.is_floating_point() else probes


def _check_analyses(
    config: RunConfig, geometry: Geometry, splits: dict[str, SplitSource], sample_shape: tuple[int, ...]
) -> None:
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


def _geometry(
    config: RunConfig,
    splits: dict[str, SplitSource],
    groups: list[str],
    num_outputs: int,
    penultimate_dim: int | None,
) -> Geometry:
    kernels = []
    for kernel in config.kernels:
        projection = config.projection_of(kernel)
        if kernel.kind == "ck" and kernel.layerwise:
            raise ConfigError(f"kernel {kernel.label!r} of kind ck has no parameters, so it cannot be layerwise.")
        dim = penultimate_dim if kernel.kind == "ck" else projection.resolved_dim if projection.kind != "none" else None
        kernels.append(
            KernelGeometry(
                name=kernel.label, kind=kernel.kind, feature_dim=dim, groups=tuple(groups) if kernel.layerwise else ()
            )
        )
    num_classes = max(
        (int(s.labels.max()) + 1 for s in splits.values() if s.labels is not None and s.labels.dim() == 1), default=0
    )
    shapes = {
        name: SplitGeometry(
            num_samples=len(source), labels=source.label_kind, num_targets=_num_targets(source, num_classes)
        )
        for name, source in splits.items()
    }
    return Geometry(
        splits=shapes,
        train_split=config.data.train_split,
        kernels=tuple(kernels),
        pairs=config.data.resolved_pairs,
        solutions=tuple(solve.name for solve in config.solve),
        solution_targets=tuple(_solution_targets(config, solve, shapes) for solve in config.solve),
        num_outputs=num_outputs,
        shard_rows=config.store.shard_rows,
        block_rows=config.store.block_rows,
        dtype=config.store.dtype,
    )


def _num_targets(source: SplitSource, num_classes: int) -> int:
    if source.labels is None:
        return 0
    return num_classes if source.labels.dim() == 1 else source.labels.shape[1]


def _solution_targets(config: RunConfig, solve: SolveConfig, splits: dict[str, SplitGeometry]) -> int:
    """Return T of a solution; refuse targets that the labels cannot give."""
    name = config.data.train_split
    train = splits[name]
    if solve.targets == "values":
        if train.labels == "none":
            raise ConfigError(f"solution {solve.name!r} needs labels, but split {name!r} has none.")
        return 1 if train.labels == "classes" else train.num_targets
    if train.labels != "classes":
        found = "no labels" if train.labels == "none" else "real labels"
        raise ConfigError(
            f"solution {solve.name!r} asks for one-hot targets, but split {name!r} has {found}; "
            "use `targets: values`, or give integer classes."
        )
    return train.num_targets
