"""Which arrays a run has, as a function of its geometry."""

from collections.abc import Iterator

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ArraySpec
from ntkpipe.storage.grid import num_blocks, pair_name
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
        size = (num, geometry.num_outputs)
        yield ArraySpec(
            layout.output(split), size, (rows, geometry.num_outputs), geometry.dtype, (split, "network_output")
        )
    for kernel in geometry.kernels:
        yield from _kernel_specs(geometry, kernel)
    for name, num_targets in zip(geometry.solutions, geometry.solution_targets, strict=True):
        yield from _solution_specs(geometry, name, num_targets)


def _kernel_specs(geometry: Geometry, kernel: KernelGeometry) -> Iterator[ArraySpec]:
    dtype, rows, block = geometry.dtype, geometry.shard_rows, geometry.block_rows
    attributes = {"kind": kernel.kind} | ({"groups": list(kernel.groups)} if kernel.groups else {})
    num_groups = len(kernel.groups)
    for split, shape in geometry.splits.items():
        path, num = layout.features(kernel.name, split), shape.num_samples
        if kernel.feature_dim is not None and kernel.groups:
            size = (num_groups, num, kernel.feature_dim)
            chunks = (1, rows, kernel.feature_dim)
            yield ArraySpec(path, size, chunks, dtype, ("group", split, "feature"), attributes)
        elif kernel.feature_dim is not None:
            size2, chunks2 = (num, kernel.feature_dim), (rows, kernel.feature_dim)
            yield ArraySpec(path, size2, chunks2, dtype, (split, "feature"), attributes)
        # In double precision whatever the run's: squares leave the range of single precision first.
        yield ArraySpec(layout.diagonal(kernel.name, split), (num,), (rows,), "float64", (split,), attributes)
    for row_split, column_split in geometry.pairs:
        pair = pair_name(row_split, column_split)
        shape2 = (geometry.splits[row_split].num_samples, geometry.splits[column_split].num_samples)
        dimensions = (f"{row_split}_row", f"{column_split}_column")
        yield ArraySpec(layout.kernel(kernel.name, pair), shape2, (block, block), dtype, dimensions, attributes)
        if kernel.groups:
            yield ArraySpec(
                layout.component(kernel.name, pair),
                (num_groups, *shape2),
                (1, block, block),
                dtype,
                ("group", *dimensions),
                attributes,
            )


def _solution_specs(geometry: Geometry, name: str, num_targets: int) -> Iterator[ArraySpec]:
    train = geometry.train_split
    for path, split in [
        (layout.solution(name), train),
        *((layout.prediction(name, rows), rows) for rows, columns in geometry.pairs if columns == train),
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
        num = 1
        for count in counts:
            num *= count
        kind, *_, last = spec.path.split("/")
        if kind in ("kernel", "component"):
            row_split, column_split = last.split("-")
            num_rows, num_columns = spec.shape[-2:]
            num = num_blocks(row_split, num_rows, column_split, num_columns, geometry.block_rows)
            num *= counts[0] if kind == "component" else 1
        total += num * spec.chunk_bytes
    return total
