"""The features stage: one pass over a shard's samples that feeds every kernel."""

import numpy as np
import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.grid import Shard
from ntkpipe.storage.records import ChunkRecord
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.jacobians.engine import Portion
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.kernels.features import SampleFeatures, batch_features, joined
from ntkpipe.workers.tasks import FeaturesTask, Written


def compute(context: WorkerContext, task: FeaturesTask) -> Written:
    """Write a shard's outputs, and each kernel's exact diagonal and features. Memory is O(shard K + batch).

    Raises:
        NumericalError: A value is not finite; the sample is named.
    """
    shard, config = task.shard, context.spec.config
    outputs: list[torch.Tensor] = []
    parts: dict[str, list[SampleFeatures]] = {kernel.label: [] for kernel in config.kernels}
    for inputs, labels in context.batches(shard):
        sums: dict[str, SampleFeatures] = {}
        for number, portion in enumerate(context.portions()):
            outputs_BC, found = _pass(context, inputs, portion, labels, first=number == 0)
            if number == 0:
                outputs.append(outputs_BC)
            for name, features in found.items():
                sums[name] = sums[name].plus(features) if name in sums else features
        for name, features in sums.items():
            parts[name].append(features)
    records = [_write(context, shard, layout.output(shard.split), torch.cat(outputs))]
    for name, batches in parts.items():
        whole = joined(batches)
        _check_norms(context, shard, name, whole.underflow_B)
        records.append(_write(context, shard, layout.diagonal(name, shard.split), whole.diagonal_B, dtype="float64"))
        if whole.features is None:
            continue
        path = layout.features(name, shard.split)
        if whole.features.dim() == 2:
            records.append(_write(context, shard, path, whole.features))
        else:
            records += [_write(context, shard, path, rows, group) for group, rows in enumerate(whole.features)]
    return Written(tuple(records))


def _pass(
    context: WorkerContext, inputs: torch.Tensor, portion: Portion, labels: torch.Tensor | None, *, first: bool
) -> tuple[torch.Tensor, dict[str, SampleFeatures]]:
    """Return the outputs and what each kernel gets from one pass; its factors are gone when the next one starts."""
    jacobian = context.engine.run(inputs, portion, labels)
    found = {}
    for kernel in context.spec.config.kernels:
        definition = kernel_definition(kernel.kind)
        # Activations come with every pass and are taken from the first.
        if definition.functional in portion.functionals or (definition.functional is None and first):
            projection = context.projection(kernel)
            found[kernel.label] = batch_features(definition, jacobian, projection, layerwise=kernel.layerwise)
    return jacobian.outputs_BC, found


def _write(
    context: WorkerContext,
    shard: Shard,
    path: str,
    values: torch.Tensor,
    group: int | None = None,
    *,
    dtype: str | None = None,
) -> ChunkRecord:
    rows: Array = values.cpu().numpy().astype(dtype or context.spec.geometry.dtype)
    _check_finite(context, shard, path, rows)
    position: tuple[int, ...] = (shard.index, *(0,) * (rows.ndim - 1))
    if group is None:
        return context.chunks.write(path, position, rows)
    return context.chunks.write(path, (group, *position), rows[np.newaxis])


def _check_finite(context: WorkerContext, shard: Shard, path: str, rows: Array) -> None:
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
    if finite.all():
        return
    position = shard.start + int(np.flatnonzero(~finite)[0])
    sample = context.split(shard.split).ids[position]
    raise NumericalError(
        f"{path} is NaN or infinite for sample {sample!r} (position {position} of split {shard.split!r}). The model "
        "overflows or is not differentiable there: look at the sample, or try model.dtype=float64 with "
        "store.dtype=float64."
    )


def _check_norms(context: WorkerContext, shard: Shard, kernel: str, underflow_N: torch.Tensor) -> None:
    if not underflow_N.any():
        return
    position = shard.start + int(underflow_N.nonzero()[0, 0])
    sample = context.split(shard.split).ids[position]
    raise NumericalError(
        f"kernel {kernel!r}: the gradient of sample {sample!r} (position {position} of split {shard.split!r}) is so small "
        "that its squared norm is lost in float32. Set model.dtype=float64."
    )
