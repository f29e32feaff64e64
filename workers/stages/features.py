"""The features stage: one pass over a shard's samples that feeds every kernel."""

from collections.abc import Iterator

import numpy as np
import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.names import CLOSED_FORMS, RANDOM_FEATURES
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
    records: list[ChunkRecord] = []
    for member in context.members:
        records += _of_member(context, task.shard, member)
    records += _without_model(context, task.shard)
    return Written(tuple(records))


def _of_member(context: WorkerContext, shard: Shard, member: str) -> Iterator[ChunkRecord]:
    """Yield what the model, or one of its members, gives."""
    kernels = context.kernels.seen_by(member)
    outputs: list[torch.Tensor] = []
    parts: dict[str, list[SampleFeatures]] = {kernel.label: [] for kernel in kernels}
    for inputs, labels in context.batches(shard):
        sums: dict[str, SampleFeatures] = {}
        for number, portion in enumerate(context.kernels.portions(kernels)):
            outputs_BC, found = _pass(context, inputs, portion, labels, member, first=number == 0)
            if number == 0:
                outputs.append(outputs_BC)
            for name, features in found.items():
                sums[name] = sums[name].plus(features) if name in sums else features
        for name, features in sums.items():
            parts[name].append(features)
    geometry = context.spec.geometry
    position = _position(geometry.members, member)
    yield _write(context, shard, layout.output(shard.split), torch.cat(outputs), position)
    for name, batches in parts.items():
        position = _position(geometry.kernel(name).members, member)
        yield from _write_kernel(context, shard, name, joined(batches), position)


def _pass(
    context: WorkerContext,
    inputs: torch.Tensor,
    portion: Portion,
    labels: torch.Tensor | None,
    member: str,
    *,
    first: bool,
) -> tuple[torch.Tensor, dict[str, SampleFeatures]]:
    """Return the outputs and what each kernel gets from one pass; its factors are gone when the next one starts."""
    jacobian = context.engine(member).run(inputs, portion, labels)
    found: dict[str, SampleFeatures] = {}
    shared: dict[object, SampleFeatures] = {}
    for kernel in context.kernels.seen_by(member):
        functional = kernel_definition(kernel.kind).functional
        # Activations come with the first pass.
        if functional in portion.functionals or (functional is None and first):
            key = context.kernels.features_key(kernel, member)
            if key not in shared:
                shared[key] = batch_features(
                    context.kernels.view(kernel, member),
                    jacobian,
                    context.kernels.projection(kernel),
                    weights=context.kernels.weights(kernel) if context.kernels.is_restricted(kernel) else None,
                    layerwise=kernel.layerwise,
                )
            found[kernel.label] = shared[key]
    return jacobian.outputs_BC, found


def _without_model(context: WorkerContext, shard: Shard) -> Iterator[ChunkRecord]:
    """Yield what closed forms and random features give; samples are put into double precision for them."""
    for kernel in context.spec.config.kernels:
        if isinstance(kernel, EmpiricalKernel) or kernel.kind not in (*CLOSED_FORMS, *RANDOM_FEATURES):
            continue
        inputs = context.plain_inputs(shard)
        features = None
        if kernel.kind in RANDOM_FEATURES:
            mapped = context.kernels.random_features(kernel.label)
            features = mapped.features(inputs)
            squares = features.square()
            num = features.shape[1] - mapped.num_negative
            diagonal_N = squares[:, :num].sum(dim=1) - squares[:, num:].sum(dim=1)
        else:
            diagonal_N = context.kernels.closed_form(kernel.label).diagonal(inputs)
        never_N = torch.zeros(len(diagonal_N), dtype=torch.bool)
        yield from _write_kernel(context, shard, kernel.label, SampleFeatures(features, diagonal_N, never_N), ())


def _write_kernel(
    context: WorkerContext, shard: Shard, name: str, whole: SampleFeatures, member: tuple[int, ...]
) -> Iterator[ChunkRecord]:
    _check_norms(context, shard, name, whole.underflow_B)
    yield _write(context, shard, layout.diagonal(name, shard.split), whole.diagonal, member, dtype="float64")
    if whole.features is None:
        return
    path = layout.features(name, shard.split)
    if whole.features.dim() == 2:
        yield _write(context, shard, path, whole.features, member)
        return
    for group, rows in enumerate(whole.features):
        yield _write(context, shard, path, rows, (*member, group))


def _position(members: tuple[str, ...], member: str) -> tuple[int, ...]:
    """Return where a member is along the leading axis; nowhere without one."""
    return (members.index(member),) if members else ()


def _write(
    context: WorkerContext,
    shard: Shard,
    path: str,
    values: torch.Tensor,
    leading: tuple[int, ...],
    *,
    dtype: str | None = None,
) -> ChunkRecord:
    rows: Array = values.cpu().numpy().astype(dtype or context.spec.geometry.dtype)
    _check_finite(context, shard, path, rows)
    position = (*leading, shard.index, *(0,) * (rows.ndim - 1))
    return context.chunks.write(path, position, rows[(np.newaxis,) * len(leading)])


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
