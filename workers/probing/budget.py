"""How work is cut to stay within the memory of a worker."""

from functools import partial

import torch

from ntkpipe.configs.errors import PlanError
from ntkpipe.configs.run import RunConfig
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.jacobians.activations import module_of
from ntkpipe.workers.jacobians.engine import JacobianEngine
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.memory import measure_footprint
from ntkpipe.workers.passes import Footprint, PassPlan, WorkerMemory, plan_passes, predict_memory
from ntkpipe.workers.probing.models import ProbedModel
from ntkpipe.workers.projections.tensor_sketch import CACHE_BYTES

NO_MODEL = Footprint(0, 0, 0, 0, 0, 0, 0, 0)


def plan_memory(
    config: RunConfig, geometry: Geometry, model: ProbedModel | None, inputs: torch.Tensor
) -> tuple[PassPlan, WorkerMemory]:
    """Cut batches so that a worker stays within its memory.

    Raises:
        PlanError: It cannot; says how much is needed at the least.
    """
    exact = [
        kernel
        for kernel in config.model_kernels
        if not kernel_definition(kernel.kind).is_own_feature and config.projection_of(kernel).resolved_kind == "none"
    ]
    functionals = {kernel_definition(kernel.kind).functional for kernel in config.model_kernels} - {None}
    vectors = sum(f.num_vectors(geometry.num_outputs) for f in functionals if f is not None)
    if len(functionals) > 1 and vectors >= geometry.num_outputs and Functional("trace") not in functionals:
        vectors += geometry.num_outputs
    footprint, model_bytes, num_groups = NO_MODEL, 0, 0
    if model is not None:
        modules = {module_of(call) for calls in model.modules.values() for call in calls}
        footprint = measure_footprint(model.engine, inputs[:2], sorted(modules))
        tensors = (*model.engine.model.parameters(), *model.engine.model.buffers())
        model_bytes = sum(value.nbytes for value in tensors) * len(model.routes)
        num_groups = max(len(model.engine.names), *(len(calls) for calls in model.modules.values()), 0)
    predict = partial(
        predict_memory,
        geometry,
        footprint=footprint,
        model_bytes=model_bytes,
        input_bytes=inputs[0].nbytes,
        table_bytes=_table_bytes(config, geometry, model.engine) if model is not None else 0,
        exact_groups=num_groups if exact else None,
    )
    whole = any(kernel_definition(kernel.kind).per_output for kernel in exact)
    allowed = int(config.resources.max_worker_bytes)
    least = predict(passes=PassPlan(1, max(1, vectors) if whole else 1, 1, 1)).peak_bytes
    if least > allowed:
        raise PlanError(
            f"a worker needs at least {least / 2**20:,.0f} MiB for one sample at a time, but "
            f"resources.max_worker_bytes is {allowed / 2**20:,.0f} MiB. Raise it, or lower store.shard_rows, "
            "store.block_rows or the projection's dim."
        )
    budget = allowed - predict(passes=None).peak_bytes
    limit = config.resources.batch_size
    on_cpu = config.resources.device == "cpu"
    passes = plan_passes(
        footprint, vectors, budget, limit, keep_rows=bool(exact), on_cpu=on_cpu, split_vectors=not whole
    )
    return passes, predict(passes=passes)


def _table_bytes(config: RunConfig, geometry: Geometry, engine: JacobianEngine) -> int:
    """Return what the tables of all projections may take: at the most a bin and a sign for every coordinate and half."""
    sizes = {name: value.numel() for name, value in engine.model.named_parameters()}
    num_parameters = sum(sizes[name] for name in engine.names)
    vectors: dict[str, int] = {}
    for kernel in config.model_kernels:
        functional = kernel_definition(kernel.kind).functional
        projection = config.projection_of(kernel)
        if functional is not None and projection.resolved_kind != "none":
            key = projection.model_dump_json()
            vectors[key] = max(vectors.get(key, 0), functional.num_vectors(geometry.num_outputs))
    return sum(min(CACHE_BYTES, 24 * num_parameters * num) for num in vectors.values())
