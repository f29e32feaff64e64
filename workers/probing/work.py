"""How much work the kernels of a model are for a sample and for a pair of samples, from the routes that are taken.

The roofline that routes are chosen by is linear in the times of its units. How its prediction changes as one of them
does therefore tells how many of them there are, whatever formula a route has.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import Final

from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.run import RunConfig
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.jacobians.engine import portions
from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.rates import CPU, GPU, Rates, assumed
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.passes import PassPlan
from ntkpipe.workers.probing.explain import exact_ways, stretched
from ntkpipe.workers.probing.memory_model import MemoryModel
from ntkpipe.workers.probing.models import ProbedModel
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.registry import make_projection
from ntkpipe.workers.work import ModelWork, Work

STEP: Final = 1e-4
"""By which a unit's time is changed; far from the next kink of the formulas, and from rounding."""

PASS_LAUNCHES: Final = 12
"""Operations for each parameter in a forward and a backward pass, those of hooks and reductions counted."""

NORM_WAYS: Final = frozenset({"transforms"})
"""Ways of projections whose prediction includes exact norms."""


def work_of(seconds: Callable[[], float], rates: Rates) -> Work:
    """Return the work behind a predicted time at some rates."""
    with assumed(rates):
        now = seconds()

    def amount(**changed: float) -> float:
        with assumed(replace(rates, **changed)):
            return (seconds() - now) / STEP

    return Work(
        flops=amount(flops=rates.flops / (1 + STEP)) * rates.flops,
        bytes=amount(bytes=rates.bytes / (1 + STEP)) * rates.bytes,
        fft_flops=amount(fft_flops=rates.fft_flops / (1 + STEP)) * rates.fft_flops,
        scatters=amount(scatters=rates.scatters / (1 + STEP)) * rates.scatters,
        launches=amount(launch_seconds=rates.launch_seconds * (1 + STEP)) / rates.launch_seconds,
    )


def model_work(
    config: RunConfig, geometry: Geometry, model: ProbedModel, needs: MemoryModel, passes: PassPlan, *, on_cpu: bool
) -> ModelWork:
    """Return the work of all kernels of a model, where routes are chosen as on a CPU or as on a GPU."""
    rates = CPU if on_cpu else GPU
    kernels = config.model_kernels
    exact = [kernel for kernel in kernels if _is_exact(config, kernel)]
    num_members = max(1, len(geometry.members))
    double = config.model is not None and config.model.dtype == "float64"
    sample, batch = _pass(geometry, model, needs, passes, list(kernels), double=double)
    for kernel in _sharing(config, geometry, kernels):
        sample += _features(config, geometry, model, passes, kernel, rates)
    factors, factors_batch, pair = Work(), Work(), Work()
    if exact:
        factors, factors_batch = _pass(geometry, model, needs, passes, exact, double=double)
        for kernel in _sharing(config, geometry, exact):
            pair += _products(geometry, model, passes, kernel, rates)

    def finished(part: Work) -> Work:
        whole = part.times(num_members)
        return whole.in_double() if double else whole

    return ModelWork(
        sample=finished(sample),
        batch=finished(batch),
        factors=finished(factors),
        factors_batch=finished(factors_batch),
        pair=finished(pair),
        passes=passes,
    )


def _is_exact(config: RunConfig, kernel: EmpiricalKernel) -> bool:
    return not kernel_definition(kernel.kind).is_own_feature and config.projection_of(kernel).resolved_kind == "none"


def _sharing(
    config: RunConfig, geometry: Geometry, kernels: tuple[EmpiricalKernel, ...] | list[EmpiricalKernel]
) -> Iterator[EmpiricalKernel]:
    """Yield one kernel of each group that shares all of its work."""
    seen: set[Hashable] = set()
    for kernel in kernels:
        one, shape = kernel_definition(kernel.kind), geometry.kernel(kernel.label)
        key = (
            (one.source, one.per_output, one.row_entries, one.column_entries, kernel.layerwise, kernel.cross),
            config.projection_of(kernel).model_dump_json(),
            tuple(shape.weights.items()),
            kernel.label if kernel.precondition is not None else "",
        )
        if key not in seen:
            seen.add(key)
            yield kernel


def _pass(
    geometry: Geometry,
    model: ProbedModel,
    needs: MemoryModel,
    passes: PassPlan,
    kernels: list[EmpiricalKernel],
    *,
    double: bool,
) -> tuple[Work, Work]:
    """Return forward and backward passes of a sample, and what a batch takes however small it is; in single precision."""
    functionals = {kernel_definition(kernel.kind).functional for kernel in kernels} - {None}
    wanted = [functional for functional in functionals if functional is not None]
    cut = portions(wanted, geometry.num_outputs, passes.max_vectors)
    vectors = min(sum(f.num_vectors(geometry.num_outputs) for f in wanted), max(1, geometry.num_outputs))
    footprint = needs.footprint
    flops = model.forward_flops * (len(cut) + vectors)
    # Every activation and every gradient is written once and read twice, by what comes next and by what is recorded.
    moved = 3 * (len(cut) * footprint.graph_bytes + vectors * footprint.output_bytes)
    # Measured in the precision of the model, which is counted later.
    moved = moved // 2 if double else moved
    launches = PASS_LAUNCHES * len(cut) * len(model.any_routes)
    return Work(flops=float(flops), bytes=float(moved)), Work(launches=float(launches))


def _features(
    config: RunConfig, geometry: Geometry, model: ProbedModel, passes: PassPlan, kernel: EmpiricalKernel, rates: Rates
) -> Work:
    """Return what a sample's features and diagonal take beside the passes."""
    functional = kernel_definition(kernel.kind).functional
    if functional is None:
        return Work()
    projection = config.projection_of(kernel)
    mapped = make_projection(projection) if projection.resolved_kind != "none" else None
    vectors = functional.num_vectors(geometry.num_outputs)
    total = Work()
    for factor in _factors(model, kernel, passes.batch_size, min(vectors, passes.max_vectors)):
        total += _projected(factor, mapped, rates).times(1 / factor.num_samples)
    return total.times(max(1.0, vectors / passes.max_vectors))


def _projected(factor: AbstractFactor, projection: AbstractProjection | None, rates: Rates) -> Work:
    """Return the work on a parameter of a batch: its map, and its exact norms where they are not found on the way."""
    norms = Work()
    if isinstance(factor, OuterFactor):
        norms = work_of(lambda: min(factor.norm_seconds()), rates)
    if projection is None:
        return norms
    with assumed(rates):
        ways = projection.ways(factor)
    way = min(ways, key=lambda name: ways[name])
    mapped = work_of(lambda: projection.ways(factor)[way], rates)
    return mapped if way in NORM_WAYS else mapped + norms


def _products(geometry: Geometry, model: ProbedModel, passes: PassPlan, kernel: EmpiricalKernel, rates: Rates) -> Work:
    """Return what a pair of samples takes, from products of groups of samples."""
    functional = kernel_definition(kernel.kind).functional
    if functional is None:
        return Work()
    vectors = functional.num_vectors(geometry.num_outputs)
    total = Work()
    for factor in _factors(model, kernel, passes.gram_samples, min(vectors, passes.max_vectors)):
        with assumed(rates):
            ways = exact_ways(factor, vectors)
        way = min(ways, key=lambda name: ways[name])

        def seconds(factor: AbstractFactor = factor, way: str = way) -> float:
            return exact_ways(factor, vectors)[way]

        total += work_of(seconds, rates).times(1 / factor.num_samples**2)
    return total.times(max(1.0, vectors / passes.max_vectors))


def _factors(model: ProbedModel, kernel: EmpiricalKernel, batch: int, vectors: int) -> Iterator[AbstractFactor]:
    (factors,) = model.first.factors.values()
    for route in model.parameters_of(kernel):
        yield stretched(factors[route.name], batch, vectors)
