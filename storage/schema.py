"""Which arrays a run has, as a function of its geometry."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ntkpipe.storage import layout
from ntkpipe.storage.grid import num_blocks, pair_name
from ntkpipe.storage.metadata import ArraySpec
from ntkpipe.storage.records import Geometry, KernelGeometry


def array_specs(geometry: Geometry) -> Iterator[ArraySpec]:
    """Yield every array of the run; dimension names let xarray align arrays of equal splits."""
    for split, shape in geometry.splits.items():
        num, rows = shape.num_samples, geometry.shard_rows
        yield ArraySpec(layout.sample_id(split), (num,), (num,), "str", (split,))
        if shape.labels == "classes":
            yield ArraySpec(layout.label(split), (num,), (num,), "int64", (split,))
        elif shape.labels == "values":
            size = (num, shape.num_targets)
            yield ArraySpec(layout.label(split), size, size, "float64", (split, "target"))
        if geometry.num_outputs:
            size, chunks = (num, geometry.num_outputs), (rows, geometry.num_outputs)
            spec = ArraySpec(layout.output(split), size, chunks, geometry.dtype, (split, "network_output"))
            yield _with_axis(spec, "member", len(geometry.members))
    for kernel in geometry.kernels:
        yield from _sample_specs(geometry, kernel)
        if kernel.derived is None:
            yield from _matrix_specs(geometry, kernel)
    for factor in geometry.factors:
        size, tile = (factor.size, factor.size), (factor.tile_rows, factor.tile_rows)
        dimensions = (f"{factor.name}_factor_row", f"{factor.name}_factor_column")
        yield ArraySpec(layout.factor(factor.name), size, tile, factor.dtype, dimensions)
    for name, num_targets in zip(geometry.solutions, geometry.solution_targets, strict=True):
        yield from _solution_specs(geometry, name, num_targets)


def _with_axis(spec: ArraySpec, dimension: str, num: int) -> ArraySpec:
    """Return an array with a leading axis, one chunk for each of its positions; unchanged for 0 positions."""
    if not num:
        return spec
    return replace(spec, shape=(num, *spec.shape), chunks=(1, *spec.chunks), dimensions=(dimension, *spec.dimensions))


def _attributes(kernel: KernelGeometry) -> dict[str, Any]:
    """Return what a reader of the plain arrays needs to know."""
    lists = {"groups": kernel.groups, "members": kernel.members, "modules": kernel.modules}
    return {"kind": kernel.kind} | {name: list(values) for name, values in lists.items() if values}


def _sample_specs(geometry: Geometry, kernel: KernelGeometry) -> Iterator[ArraySpec]:
    attributes, num_members = _attributes(kernel), len(kernel.members)
    if kernel.num_moments:
        size = (kernel.num_moments,)
        spec = ArraySpec(layout.moments(kernel.name), size, size, "float64", ("parameter",), attributes)
        yield _with_axis(spec, "member", num_members)
    for split, shape in geometry.splits.items():
        num, rows = shape.num_samples, geometry.shard_rows
        if kernel.statistic_dim is not None:
            size2, chunks2 = (num, kernel.statistic_dim), (geometry.block_rows, kernel.statistic_dim)
            path = layout.statistic(kernel.name, split)
            yield ArraySpec(path, size2, chunks2, "float64", (split, "statistic"), attributes)
        if kernel.derived is not None:
            continue
        if kernel.feature_dim is not None:
            size2, chunks2 = (num, kernel.feature_dim), (rows, kernel.feature_dim)
            path = layout.features(kernel.name, split)
            spec = ArraySpec(path, size2, chunks2, geometry.dtype, (split, "feature"), attributes)
            yield _with_axis(_with_axis(spec, "group", len(kernel.groups)), "member", num_members)
        # In double precision whatever the run's: squares leave the range of single precision first.
        spec = ArraySpec(layout.diagonal(kernel.name, split), (num,), (rows,), "float64", (split,), attributes)
        if kernel.width > 1:
            spec = replace(
                spec, shape=(num, kernel.width), chunks=(rows, kernel.width), dimensions=(split, "network_output")
            )
        yield _with_axis(spec, "member", num_members)


def _matrix_specs(geometry: Geometry, kernel: KernelGeometry) -> Iterator[ArraySpec]:
    attributes, num_members = _attributes(kernel), 0 if kernel.cross else len(kernel.members)
    block = geometry.block_rows * kernel.width
    for row_split, column_split in geometry.pairs:
        pair = pair_name(row_split, column_split)
        rows, columns = (geometry.splits[split].num_samples * kernel.width for split in (row_split, column_split))
        dimensions = (f"{row_split}_row", f"{column_split}_column")
        if kernel.width > 1:
            dimensions = (f"{row_split}_output_row", f"{column_split}_output_column")
        spec = ArraySpec("", (rows, columns), (block, block), geometry.dtype, dimensions, attributes)
        yield _with_axis(replace(spec, path=layout.kernel(kernel.name, pair)), "member", num_members)
        if kernel.groups:
            component = _with_axis(replace(spec, path=layout.component(kernel.name, pair)), "group", len(kernel.groups))
            yield _with_axis(component, "member", num_members)


def _solution_specs(geometry: Geometry, name: str, num_targets: int) -> Iterator[ArraySpec]:
    train = geometry.train_split
    for path, split in [
        (layout.solution(name), train),
        *((layout.prediction(name, split), split) for split in geometry.predicted_splits(name)),
    ]:
        size = (geometry.splits[split].num_samples, num_targets)
        yield ArraySpec(path, size, size, "float64", (split, f"{name}_target"))


def stored_bytes(geometry: Geometry) -> int:
    """Return how many bytes the run's chunks will take; edge chunks are stored whole, upper triangles not at all."""
    total = 0
    for spec in array_specs(geometry):
        if spec.dtype == "str":
            continue
        counts = [-(-size // chunk) for size, chunk in zip(spec.shape, spec.chunks, strict=True)]
        kind, *names = spec.path.split("/")
        if kind in ("kernel", "component") and geometry.kernel(names[0]).symmetric:
            rows, columns = names[1].split("-")
            sizes = (geometry.splits[split].num_samples for split in (rows, columns))
            counts[-2:] = [num_blocks(rows, next(sizes), columns, next(sizes), geometry.block_rows), 1]
        elif kind == "factor":
            counts = [counts[0] * (counts[0] + 1) // 2]
        total += math.prod(counts) * spec.chunk_bytes
    return total
