"""The kernel stage: one block of every kernel matrix, from stored features or from freshly captured factors."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.configs.kernels import KernelConfig
from ntkpipe.storage import layout
from ntkpipe.storage.grid import Block, Shard
from ntkpipe.storage.records import ChunkRecord
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.jacobians.engine import Factors, Portion
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.kernels.blocks import (
    Components,
    cosine_normalised,
    exact_block,
    exact_diagonal_block,
    in_groups,
    joined_columns,
    sum_in_order,
)
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.tasks import KernelTask, Written


def compute(context: WorkerContext, task: KernelTask) -> Written:
    """Write one block of every kernel and its components.

    Memory is O(block), plus, for exact kernels, the factors of as many of its rows as the plan allows.

    Raises:
        NumericalError: An entry is not finite; kernel and samples are named.
    """
    block = task.block
    records: list[ChunkRecord] = []
    exact = _exact(context, block) if context.has_exact_kernels else {}
    for kernel in context.spec.config.kernels:
        definition = kernel_definition(kernel.kind)
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


def _exact(context: WorkerContext, block: Block) -> dict[Functional, Components]:
    """Compute components of all exact kernels, in passes whose results are added up."""
    total: dict[Functional, Components] = {}
    for portion in context.portions(exact_only=True):
        for functional, part in _exact_portion(context, block, portion).items():
            known = total.get(functional)
            total[functional] = {name: known[name] + value for name, value in part.items()} if known else part
    return total


def _exact_portion(context: WorkerContext, block: Block, portion: Portion) -> dict[Functional, Components]:
    """Compute one pass for as many rows at a time as may be kept; columns stream past and serve all kernels."""
    step = context.spec.passes.row_samples
    layerwise = any(kernel.layerwise for kernel in context.spec.config.kernels)
    parts: dict[Functional, list[Components]] = {functional: [] for functional in portion.functionals}
    for start in range(block.rows.start, block.rows.stop, step):
        rows = replace(block.rows, start=start, stop=min(start + step, block.rows.stop))
        kept = _kept_factors(context, rows, portion)
        if rows == block.rows and block.on_diagonal:
            return {
                functional: exact_diagonal_block([group[functional] for group in kept], layerwise=layerwise)
                for functional in parts
            }
        columns: dict[Functional, list[Components]] = {functional: [] for functional in portion.functionals}
        for column in _factors(context, block.columns, portion):
            for functional, found in columns.items():
                rows_of = [group[functional] for group in kept]
                found.append(exact_block(rows_of, column[functional], layerwise=layerwise))
            del column  # before the next one is computed
        for functional, found in columns.items():
            parts[functional].append(joined_columns(found))
    return {
        functional: {name: torch.cat([part[name] for part in found]) for name in found[0]}
        for functional, found in parts.items()
    }


def _kept_factors(context: WorkerContext, rows: Shard, portion: Portion) -> list[dict[Functional, Factors]]:
    """Return the factors of rows; kept for the next task, which usually has the same rows."""
    key = (rows, portion)
    if context.kept_factors is None or context.kept_factors[0] != key:
        context.kept_factors = None
        context.kept_factors = (key, list(_factors(context, rows, portion)))
    return context.kept_factors[1]


def _factors(context: WorkerContext, side: Shard, portion: Portion) -> Iterator[dict[Functional, Factors]]:
    """Yield the factors of groups of samples."""
    step = max(context.spec.passes.gram_samples, context.spec.passes.batch_size)
    for start in range(side.start, side.stop, step):
        group = replace(side, start=start, stop=min(start + step, side.stop))
        batches = [context.engine.run(inputs, portion, labels).factors for inputs, labels in context.batches(group)]
        yield {
            functional: next(in_groups((batch[functional] for batch in batches), len(group)))
            for functional in portion.functionals
        }


def _diagonal(context: WorkerContext, name: str, side: Shard) -> torch.Tensor:
    return torch.from_numpy(context.samples.diagonal(name, side.split, side.start, side.stop)).to(context.device)


def _write(context: WorkerContext, block: Block, kernel: KernelConfig, components: Components) -> Iterator[ChunkRecord]:
    position = (block.rows.index, block.columns.index)
    if block.on_diagonal:
        components = {name: (part + part.T) / 2 for name, part in components.items()}
    total = sum_in_order(components.values())
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
