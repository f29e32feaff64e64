"""What the memory of a worker depends on, measured on a model and its data."""

import torch

from ntkpipe.configs.run import RunConfig
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.jacobians.activations import module_of
from ntkpipe.workers.jacobians.engine import JacobianEngine
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.memory import measure_footprint
from ntkpipe.workers.passes import Footprint
from ntkpipe.workers.probing.memory_model import MemoryModel
from ntkpipe.workers.probing.models import ProbedModel
from ntkpipe.workers.projections.tensor_sketch import CACHE_BYTES

NO_MODEL = Footprint(0, 0, 0, 0, 0, 0, 0, 0)


def measure_memory(
    config: RunConfig, geometry: Geometry, model: ProbedModel | None, inputs: torch.Tensor
) -> MemoryModel:
    """Measure what the memory of a worker depends on."""
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
    return MemoryModel(
        footprint=footprint,
        num_vectors=vectors,
        model_bytes=model_bytes,
        input_bytes=inputs[0].nbytes,
        table_bytes=_table_bytes(config, geometry, model.engine) if model is not None else 0,
        exact_groups=num_groups if exact else None,
        whole_vectors=any(kernel_definition(kernel.kind).per_output for kernel in exact),
    )


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
