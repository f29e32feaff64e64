"""Standard errors of estimated kernel matrices."""

import numpy as np

from ntkpipe.pipeline.query.names import Doubles, MatrixName, Positions
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.storage.records import Geometry

MATRICES = 3
"""Of the size of the answer that are held beside it."""


def standard_errors(reader: AbstractRunReader, name: MatrixName, rows: Positions, columns: Positions) -> Doubles:
    """Return the standard errors of a kernel's entries, (M, N); zeros for an exact kernel.

    The two halves of the features are independent sketches. Each estimates an entry by twice its inner product; the
    estimate is their mean, and half their difference is its standard error. A single entry's has one degree of freedom
    only: look at many of them, such as their root mean square. Memory: :func:`work_bytes`.
    """
    kernel, _ = reader.manifest.geometry.matrix(name.kernel)
    if not kernel.sketched or kernel.width > 1:
        return np.zeros((len(rows), len(columns)))
    # A kernel between two members has features of each; every other one of the member that it is named with.
    references = [f"{name.kernel}@{member}" for member in kernel.members] if kernel.cross else [name.kernel] * 2
    sides = list(zip(references, (name.rows, name.columns), (rows, columns), strict=True))
    parts = [reader.features(reference, split, at) for reference, split, at in sides]
    errors: Doubles = np.zeros((len(rows), len(columns)))
    # Of a layerwise kernel the groups are added one by one: all of them at once would be as many matrices.
    for one, other in zip(*parts, strict=True) if kernel.groups else [parts]:
        errors += _difference(one.astype(np.float64), other.astype(np.float64))
    np.abs(errors, out=errors)
    if kernel.cosine:
        scale = np.sqrt(np.outer(*(reader.diagonal(reference, split)[at] for reference, split, at in sides)))
        errors = np.divide(errors, scale, out=np.zeros_like(errors), where=scale > 0)
    return errors


def work_bytes(geometry: Geometry, reference: str, num_rows: int, num_columns: int) -> int:
    """Return what is held while standard errors are made: matrices like the answer, and features, also in float64."""
    kernel, _ = geometry.matrix(reference)
    if not kernel.sketched or kernel.width > 1:
        return 0
    num_features = (kernel.feature_dim or 0) * max(1, len(kernel.groups))
    return MATRICES * 8 * num_rows * num_columns + 2 * 8 * (num_rows + num_columns) * num_features


def _difference(one: Doubles, other: Doubles) -> Doubles:
    """Return the inner products of the first halves of features less those of the second halves."""
    half = one.shape[-1] // 2
    difference: Doubles = one[:, :half] @ other[:, :half].T
    difference -= one[:, half:] @ other[:, half:].T
    return difference
