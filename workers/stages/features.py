"""The features stage: one pass over a shard's samples that feeds every kernel."""

import numpy as np
import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.grid import Shard
from ntkpipe.storage.records import ChunkRecord
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.kernels.definitions import DEFINITIONS
from ntkpipe.workers.kernels.features import SampleFeatures, batch_features
from ntkpipe.workers.sources.data import batches
from ntkpipe.workers.tasks import FeaturesTask, Written


def compute(context: WorkerContext, task: FeaturesTask) -> Written:
    """Write a shard's outputs, and each kernel's exact diagonal and features. Memory is O(shard K + batch).

    Raises:
        NumericalError: A value is not finite; the sample is named.
    """
    shard, config = task.shard, context.spec.config
    functionals, inputs = context.functionals(), context.inputs(shard.split, shard.start, shard.stop)
    outputs: list[torch.Tensor] = []
    parts: dict[str, list[SampleFeatures]] = {kernel.label: [] for kernel in config.kernels}
    for batch in batches(inputs, config.resources.batch_size, context.dtype, context.device):
        jacobian = context.engine.run(batch, functionals)
        outputs.append(jacobian.outputs_BC)
        for kernel in config.kernels:
            parts[kernel.label].append(
                batch_features(
                    DEFINITIONS[kernel.kind], jacobian, context.projection(kernel), layerwise=kernel.layerwise
                )
            )
    records = [_write(context, shard, layout.output(shard.split), torch.cat(outputs))]
    for name, found in parts.items():
        _check_norms(context, shard, name, torch.cat([part.underflow_B for part in found]))
        diagonal_N = torch.cat([part.diagonal_B for part in found])
        records.append(_write(context, shard, layout.diagonal(name, shard.split), diagonal_N, dtype="float64"))
        features = [part.features for part in found if part.features is not None]
        if not features:
            continue
        stacked, path = torch.cat(features, dim=-2), layout.features(name, shard.split)
        if stacked.dim() == 2:
            records.append(_write(context, shard, path, stacked))
        else:
            records += [_write(context, shard, path, rows, group) for group, rows in enumerate(stacked)]
    return Written(tuple(records))


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
