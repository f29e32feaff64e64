"""The kernel stage: one block of every kernel matrix, from stored features, fresh factors, or a formula."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.names import CLOSED_FORMS, RANDOM_FEATURES
from ntkpipe.configs.kernels.union import KernelConfig
from ntkpipe.storage import layout
from ntkpipe.storage.grid import Block, Shard
from ntkpipe.storage.records import ChunkRecord, KernelGeometry
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.kernels.blocks import TOTAL, Components, combined, cosine_normalised, sum_in_order
from ntkpipe.workers.kernels.random_features.base import signed_gram
from ntkpipe.workers.stages.exact import ExactKernels
from ntkpipe.workers.tasks import KernelTask, Written


@dataclass(frozen=True, slots=True)
class SeenBy:
    """Through which members of the model rows and columns are seen, as positions along the leading axis of a kernel."""

    rows: int | None = None
    columns: int | None = None


def compute(context: WorkerContext, task: KernelTask) -> Written:
    """Write one block of every kernel and its components; of kernels that are not symmetric its mirror image too.

    Memory is O(block), plus, for exact kernels, the factors of as many of its rows as the plan allows.

    Raises:
        NumericalError: An entry is not finite; kernel and samples are named.
    """
    block = task.block
    records: list[ChunkRecord] = []
    for kernels in context.kernels.with_equal_features():
        records += _from_features(context, block, kernels)
    for members in context.kernels.exact_members():
        exact = ExactKernels(context, block, members)
        for kernel in exact.kernels:
            shape = context.spec.geometry.kernel(kernel.label)
            seen_by = SeenBy() if not members[0] else SeenBy(*(shape.members.index(member) for member in members))
            records += _write_exact(context, block, kernel, seen_by, exact)
    for other in context.spec.config.kernels:
        if not isinstance(other, EmpiricalKernel) and context.spec.geometry.kernel(other.label).derived is None:
            records += _without_model(context, block, other)
    return Written(tuple(records))


def _from_features(context: WorkerContext, block: Block, kernels: list[EmpiricalKernel]) -> Iterator[ChunkRecord]:
    """Yield the chunks of kernels with equal features, which share their products."""
    shape = context.spec.geometry.kernel(kernels[0].label)
    for seen_by in _member_pairs(shape):
        for tile in _tiles(block, shape):
            grams = [_gram(context, shape, tile, seen_by, group) for group in range(len(shape.groups) or 1)]
            components = dict(zip(shape.groups or (TOTAL,), grams, strict=True))
            for kernel in kernels:
                yield from _write(context, tile, kernel, components, seen_by)


def _gram(context: WorkerContext, shape: KernelGeometry, tile: Block, seen_by: SeenBy, group: int) -> torch.Tensor:
    """Return inner products of stored features; of a block on the diagonal of one array with itself."""

    def rows(side: Shard, member: int | None) -> torch.Tensor:
        part = group if shape.groups else None

        def read() -> torch.Tensor:
            values = context.samples.features(shape.name, side.split, side.start, side.stop, member=member, group=part)
            return torch.from_numpy(values).to(context.device)

        # In the precision in which it is stored: so many bytes are counted for a side, whatever the model's.
        kept = context.kept_sides.get(("features", shape.name, side, member, part), read)
        # Maps of samples were computed in double precision, whatever the model's.
        return kept if shape.kind in RANDOM_FEATURES else kept.to(context.dtype)

    left = rows(tile.rows, seen_by.rows)
    same = tile.on_diagonal and seen_by.rows == seen_by.columns
    return signed_gram(left, left if same else rows(tile.columns, seen_by.columns), shape.num_negative)


def _write_exact(
    context: WorkerContext, block: Block, kernel: EmpiricalKernel, seen_by: SeenBy, exact: ExactKernels
) -> Iterator[ChunkRecord]:
    shape = context.spec.geometry.kernel(kernel.label)
    for tile in _tiles(block, shape):
        components = exact.components(kernel, mirrored=tile is not block)
        if context.kernels.is_restricted(kernel):
            components = combined(components, context.kernels.weights(kernel))
        yield from _write(context, tile, kernel, components, seen_by)


def _without_model(context: WorkerContext, block: Block, kernel: KernelConfig) -> Iterator[ChunkRecord]:
    if kernel.kind in CLOSED_FORMS:
        sides = [context.plain_inputs(side) for side in (block.rows, block.columns)]
        formula = context.kernels.closed_form(kernel.label)
        values = formula.block(sides[0], None if block.on_diagonal else sides[1])
    else:
        values = _gram(context, context.spec.geometry.kernel(kernel.label), block, SeenBy(), 0)
    yield from _write(context, block, kernel, {TOTAL: values}, SeenBy())


def _member_pairs(shape: KernelGeometry) -> list[SeenBy]:
    if shape.cross:
        return [SeenBy(0, 1)]
    return [SeenBy(position, position) for position in range(len(shape.members))] or [SeenBy()]


def _tiles(block: Block, shape: KernelGeometry) -> Iterator[Block]:
    """Yield the block, and its mirror image where that is another tile of the same matrix that nobody else writes."""
    yield block
    if not shape.symmetric and block.rows.split == block.columns.split and not block.on_diagonal:
        yield Block(block.columns, block.rows)


def _write(
    context: WorkerContext, tile: Block, kernel: KernelConfig, components: Components, seen_by: SeenBy
) -> Iterator[ChunkRecord]:
    shape = context.spec.geometry.kernel(kernel.label)
    if shape.cosine:
        sides = ((tile.rows, seen_by.rows), (tile.columns, seen_by.columns))
        diagonals = [_diagonal(context, kernel.label, side, member) for side, member in sides]
        components = {name: cosine_normalised(part, *diagonals) for name, part in components.items()}
    if tile.on_diagonal and shape.symmetric:
        components = {name: (part + part.T) / 2 for name, part in components.items()}
    leading = () if seen_by.rows is None or shape.cross else (seen_by.rows,)
    position = (tile.rows.index, tile.columns.index)
    total = _stored(context, tile, shape, sum_in_order(components.values()))
    yield context.chunks.write(
        layout.kernel(kernel.label, tile.pair), (*leading, *position), total[(np.newaxis,) * len(leading)]
    )
    if shape.groups:
        path = layout.component(kernel.label, tile.pair)
        for group, name in enumerate(shape.groups):
            values = _stored(context, tile, shape, components[name])[(np.newaxis,) * (len(leading) + 1)]
            yield context.chunks.write(path, (*leading, group, *position), values)


def _diagonal(context: WorkerContext, name: str, side: Shard, member: int | None) -> torch.Tensor:
    def read() -> torch.Tensor:
        values = context.samples.diagonal(name, side.split, side.start, side.stop, member=member)
        return torch.from_numpy(values).to(context.device)

    return context.kept_sides.get(("diagonal", name, side, member), read)


def _stored(
    context: WorkerContext, tile: Block, shape: KernelGeometry, values: torch.Tensor
) -> "np.ndarray[tuple[int, ...], np.dtype[np.floating]]":
    # Adding zero turns -0.0 into 0.0, whose sign would otherwise depend on the order of a sum.
    stored = (values + 0.0).cpu().numpy().astype(context.spec.geometry.dtype)
    if not np.isfinite(stored).all():
        row, column = (int(i) // shape.width for i in np.argwhere(~np.isfinite(stored))[0])
        ids = [
            context.split(side.split).ids[side.start + offset]
            for side, offset in ((tile.rows, row), (tile.columns, column))
        ]
        raise NumericalError(
            f"kernel {shape.name!r} is NaN or infinite between samples {ids[0]!r} and {ids[1]!r}. "
            "Try model.dtype=float64 with store.dtype=float64."
        )
    return stored
