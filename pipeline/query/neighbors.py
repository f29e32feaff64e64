"""The training samples that are most similar to others, or most opposed, over whatever reads a kernel."""

import numpy as np

from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.pipeline.query.names import MatrixName, Nearest, Positions
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.storage.arrays import Array
from ntkpipe.workers.analyses.ranking import HELD_VALUES, Leaders, leaders, rectangles


def nearest(
    reader: AbstractRunReader,
    name: MatrixName,
    rows: Positions,
    k: int,
    *,
    opposed: bool = False,
    label: int | None = None,
) -> Nearest:
    """Return the training samples with the largest, or smallest, kernel values to some samples; exact.

    Columns are read a few tiles at a time, and every tile once for all rows. Memory is O(M k) and 4 million entries.

    Args:
        reader: Of the run.
        name: Of a matrix of samples whose columns are the training split.
        rows: (M,) positions in the split of its rows.
        k: How many.
        opposed: The smallest values are wanted.
        label: Only training samples of this class.

    Raises:
        ConfigError: The training split has no classes.
        NotFoundError: There is no such class.
    """
    columns = np.arange(reader.manifest.geometry.splits[name.columns].num_samples)
    if label is not None:
        columns = np.flatnonzero(training_classes(reader, label) == label)
    found = leaders(
        lambda at, part: reader.entries(name, at, part, "raise"),
        rows,
        columns,
        k,
        block_rows=reader.manifest.geometry.block_rows,
        opposed=opposed,
        own=name.rows == name.columns,
    )
    # One column less where no sample has that many, as in the split itself.
    used = (found.positions >= 0).sum(axis=1).max(initial=0)
    return Nearest(found.positions[:, :used], found.values[:, :used])


def nearest_by_class(
    reader: AbstractRunReader, name: MatrixName, rows: Positions, k: int, *, opposed: bool = False
) -> dict[int, Nearest]:
    """Return the same for every class that the training split has, with one pass over the rows.

    Memory is O(M k) for every class, and 4 million entries.

    Raises:
        ConfigError: The training split has no classes.
    """
    classes, own = training_classes(reader), name.rows == name.columns
    sizes = zip(*np.unique(classes, return_counts=True), strict=True)
    found = {int(label): Leaders(len(rows), min(k, int(size)), opposed=opposed) for label, size in sizes}
    for at, part in rectangles(rows, np.arange(len(classes)), reader.manifest.geometry.block_rows, HELD_VALUES):
        values = reader.entries(name, rows[at], part, "raise")
        same = rows[at, np.newaxis] == part
        for label, best in found.items():
            inside = np.flatnonzero(classes[part] == label)
            if len(inside):
                best.add(at, part[inside], values[:, inside], same[:, inside] if own else None)
    return {label: Nearest(best.positions, best.values) for label, best in found.items()}


def training_classes(reader: AbstractRunReader, label: int | None = None) -> Array:
    """Return the (N,) classes of the training split.

    Raises:
        ConfigError: It has none.
        NotFoundError: A label was given that is none of them.
    """
    geometry = reader.manifest.geometry
    shape = geometry.splits[geometry.train_split]
    if shape.labels != "classes":
        raise ConfigError(f"{reader.url}: split {geometry.train_split!r} has no classes to tell samples by.")
    if label is not None and not 0 <= label < shape.num_targets:
        raise NotFoundError(f"{reader.url} has no class {label}; its classes are 0 to {shape.num_targets - 1}.")
    classes = reader.labels(geometry.train_split)
    assert classes is not None, "the split has classes"
    return classes
