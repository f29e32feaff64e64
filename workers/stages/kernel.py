"""The kernel stage: one block of every kernel matrix, from stored features or from freshly captured factors."""

from collections.abc import Iterator

import numpy as np
import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.configs.kernels import KernelConfig
from ntkpipe.storage import layout
from ntkpipe.storage.grid import Block, Shard
from ntkpipe.storage.records import ChunkRecord
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.jacobians.engine import Functional
from ntkpipe.workers.kernels.blocks import Factors, cosine_normalised, exact_components
from ntkpipe.workers.kernels.definitions import DEFINITIONS
from ntkpipe.workers.kernels.features import sum_in_order
from ntkpipe.workers.sources.data import batches
from ntkpipe.workers.tasks import KernelTask, Written

Components = dict[str, torch.Tensor]
"""Parameter name to (N, M); one entry under the kernel's name where a kernel is not split by parameter."""


def compute(context: WorkerContext, task: KernelTask) -> Written:
    """Write one block of every kernel and its components.

    Memory is O(block) for kernels with features, plus the factors of the block's rows for exact ones.

    Raises:
        NumericalError: An entry is not finite; kernel and samples are named.
    """
    block = task.block
    records: list[ChunkRecord] = []
    functionals = context.functionals(exact_only=True)
    exact = _exact(context, block, functionals) if functionals else {}
    for kernel in context.spec.config.kernels:
        definition = DEFINITIONS[kernel.kind]
        if definition.functional is None or context.projection(kernel) is not None:
            components = _from_features(context, block, kernel)
        else:
            components = exact[definition.functional]
        if definition.cosine:
            sides = [_diagonal(context, kernel.label, side) for side in (block.rows, block.columns)]
            components = {name: cosine_normalised(part, *sides) for name, part in components.items()}
        records += _write(context, block, kernel, components)
    return Written(tuple(records))


def _from_features(context: WorkerContext, block: Block, kernel: KernelConfig) -> Components:
    groups = context.spec.geometry.kernel(kernel.label).groups

    def rows(side: Shard, group: int | None) -> torch.Tensor:
        values = context.samples.features(kernel.label, side.split, side.start, side.stop, group)
        return torch.from_numpy(values).to(device=context.device, dtype=context.dtype)

    def gram(group: int | None) -> torch.Tensor:
        left = rows(block.rows, group)
        return left @ (left if block.on_diagonal else rows(block.columns, group)).T

    if not groups:
        return {kernel.label: gram(None)}
    return {name: gram(index) for index, name in enumerate(groups)}


def _exact(context: WorkerContext, block: Block, functionals: set[Functional]) -> dict[Functional, Components]:
    """Compute components of all exact kernels; columns stream through in batches."""
    rows = _row_factors(context, block.rows, functionals)
    columns = iter(rows) if block.on_diagonal else _factors(context, block.columns, functionals)
    parts: dict[Functional, list[Components]] = {functional: [] for functional in functionals}
    for column in columns:
        for functional in functionals:
            row_batches = [row[functional] for row in rows]
            parts[functional].append(exact_components(row_batches, column[functional]))
    return {
        functional: {name: torch.cat([part[name] for part in found], dim=1) for name in found[0]}
        for functional, found in parts.items()
    }


def _row_factors(context: WorkerContext, side: Shard, functionals: set[Functional]) -> list[dict[Functional, Factors]]:
    """Return the factors of a block's rows; kept for the next task, which usually has the same rows."""
    if context.row_factors is None or context.row_factors[0] != side:
        context.row_factors = None
        context.row_factors = (side, list(_factors(context, side, functionals)))
    return context.row_factors[1]


def _factors(context: WorkerContext, side: Shard, functionals: set[Functional]) -> Iterator[dict[Functional, Factors]]:
    inputs = context.inputs(side.split, side.start, side.stop)
    for batch in batches(inputs, context.spec.config.resources.batch_size, context.dtype, context.device):
        yield context.engine.run(batch, functionals).factors


def _diagonal(context: WorkerContext, name: str, side: Shard) -> torch.Tensor:
    return torch.from_numpy(context.samples.diagonal(name, side.split, side.start, side.stop)).to(context.device)


def _write(context: WorkerContext, block: Block, kernel: KernelConfig, components: Components) -> Iterator[ChunkRecord]:
    position = (block.rows.index, block.columns.index)
    if block.on_diagonal:
        components = {name: (part + part.T) / 2 for name, part in components.items()}
    total = sum_in_order(list(components.values()))
    yield context.chunks.write(
        layout.kernel(kernel.label, block.pair), position, _stored(context, block, kernel, total)
    )
    if kernel.layerwise:
        path = layout.component(kernel.label, block.pair)
        for group, part in enumerate(components.values()):
            values = _stored(context, block, kernel, part)[np.newaxis]
            yield context.chunks.write(path, (group, *position), values)


def _stored(
    context: WorkerContext, block: Block, kernel: KernelConfig, values: torch.Tensor
) -> "np.ndarray[tuple[int, ...], np.dtype[np.floating]]":
    # Adding zero turns -0.0 into 0.0, whose sign would otherwise depend on the order of a sum.
    stored = (values + 0.0).cpu().numpy().astype(context.spec.geometry.dtype)
    if not np.isfinite(stored).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(stored))[0])
        ids = [
            context.split(side.split).ids[side.start + offset]
            for side, offset in ((block.rows, row), (block.columns, column))
        ]
        raise NumericalError(
            f"kernel {kernel.label!r} is NaN or infinite between samples {ids[0]!r} and {ids[1]!r}. "
            "Try model.dtype=float64 with store.dtype=float64."
        )
    return stored
