"""All that a plan needs to know of a model and its data."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.run import RunConfig
from ntkpipe.storage.records import ChosenSolver, Geometry
from ntkpipe.workers.jacobians.coverage import probe_samples
from ntkpipe.workers.jacobians.routes import ParameterRoute
from ntkpipe.workers.jacobians.truth import GradientCheck
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.passes import PassPlan, WorkerMemory
from ntkpipe.workers.probing.budget import measure_memory
from ntkpipe.workers.probing.checks import check_analyses, check_formulas, check_kernels
from ntkpipe.workers.probing.explain import Choice, exact_choices, projected_choices
from ntkpipe.workers.probing.geometry import plan_geometry, with_factors
from ntkpipe.workers.probing.memory_model import MemoryModel
from ntkpipe.workers.probing.models import ProbedModel, probe_model
from ntkpipe.workers.probing.solvers import choose_solvers
from ntkpipe.workers.probing.targets import check_solves
from ntkpipe.workers.projections.registry import make_projection
from ntkpipe.workers.solvers.choice import Choice as SolverChoice
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.sources.model import DTYPES


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of a run before its first task."""

    config: RunConfig
    """With the solvers that were chosen in place of ``auto``."""
    asked: RunConfig
    """As the user wrote it."""
    geometry: Geometry
    model: ProbedModel | None
    """None for a run without a model."""
    fingerprints: dict[str, str]
    input_digests: dict[str, tuple[str, ...]]
    """Per split, one digest of the inputs of each shard."""
    passes: PassPlan
    """How batches are cut to fit a worker."""
    memory: WorkerMemory
    """Predicted peak of a worker."""
    needs: MemoryModel
    """What that depends on."""
    choices: dict[str, dict[str, Choice]]
    """Per kernel and parameter name, how it is computed and why."""
    solvers: dict[str, SolverChoice]
    """Per solution, what it is found with and why."""
    sample_size: int
    """Numbers in a sample."""
    splits: dict[str, SplitSource]
    projected: frozenset[str]
    """Kernels that are estimated from random features."""

    @property
    def routes(self) -> tuple[ParameterRoute, ...]:
        """Of every differentiated parameter, under the first member of the model."""
        return () if self.model is None else self.model.any_routes

    @property
    def gradient(self) -> GradientCheck | None:
        """Whether the backward pass is the derivative of the forward pass; None without a model."""
        return None if self.model is None else self.model.gradient

    @property
    def forward_flops(self) -> int:
        """Floating point operations of one sample's forward pass."""
        return 0 if self.model is None else self.model.forward_flops

    @property
    def num_parameters(self) -> int:
        """P, shared parameters counted once."""
        return sum(route.numel for route in self.routes)


def probe_run(config: RunConfig, chosen: Mapping[str, ChosenSolver] | None = None) -> Probe:
    """Load the model and the data on this machine's CPU and find out all that a plan needs.

    Args:
        config: As the user wrote it.
        chosen: The solvers of a run that was started before, by solution.

    Raises:
        ConfigError: Model or data cannot be loaded, or do not fit the rest of the configuration.
        CoverageError: The model cannot be differentiated per sample, or its backward pass is not a derivative.
        PlanError: A single sample does not fit a worker's memory.
    """
    splits = {name: SplitSource(name, section) for name, section in config.data.splits.items()}
    train = splits[config.data.train_split]
    inputs = _probe_inputs(config, splits)
    model = probe_model(config, config.model, inputs, train.name) if config.model is not None else None
    digests = {name: source.digests(config.store.shard_rows) for name, source in splits.items()}
    fingerprints = model.fingerprints() if model is not None else {}
    fingerprints |= {f"data.{name}": source.fingerprint(digests[name]) for name, source in splits.items()}
    fingerprints |= check_formulas(config, inputs)
    projected = set()
    for kernel in config.model_kernels:
        projection = config.projection_of(kernel)
        if projection.resolved_kind != "none":
            projected.add(kernel.label)
            fingerprints[f"projection.{kernel.label}"] = make_projection(projection).fingerprint()
    geometry, asked = plan_geometry(config, splits, model), config
    solvers = choose_solvers(config, geometry, inputs[0].numel(), chosen or {})
    config = config.model_copy(update={"solve": tuple(choice.section for choice in solvers.values())})
    geometry = with_factors(config, geometry)
    check_solves(config, geometry, splits)
    check_kernels(config, geometry.num_outputs, splits)
    check_analyses(config, geometry, splits, tuple(inputs.shape[1:]))
    needs = measure_memory(config, geometry, model, inputs)
    passes, memory = needs.plan(
        geometry,
        int(config.resources.max_worker_bytes),
        config.resources.batch_size,
        on_cpu=config.resources.on_cpu,
    )
    return Probe(
        config=config,
        asked=asked,
        geometry=geometry,
        model=model,
        fingerprints=fingerprints,
        input_digests=digests,
        passes=passes,
        memory=memory,
        needs=needs,
        choices=_choices(config, geometry, model, passes) if model is not None else {},
        solvers=solvers,
        sample_size=inputs[0].numel(),
        splits=splits,
        projected=frozenset(projected),
    )


def _choices(
    config: RunConfig, geometry: Geometry, model: ProbedModel, passes: PassPlan
) -> dict[str, dict[str, Choice]]:
    """Return how every kernel of gradients handles every parameter."""
    (factors,) = model.first.factors.values()
    found = {}
    for kernel in config.model_kernels:
        functional = kernel_definition(kernel.kind).functional
        if functional is None:
            continue
        own = {route.name: factors[route.name] for route in model.parameters_of(kernel)}
        vectors = min(functional.num_vectors(geometry.num_outputs), passes.max_vectors)
        projection = config.projection_of(kernel)
        if projection.resolved_kind == "none":
            found[kernel.label] = exact_choices(own, vectors, passes.gram_samples)
        else:
            found[kernel.label] = projected_choices(own, vectors, passes.batch_size, make_projection(projection))
    return found


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
    if config.model is None or not probes.is_floating_point():
        return probes
    return probes.to(DTYPES[config.model.dtype])
