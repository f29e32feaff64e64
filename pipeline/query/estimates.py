"""Standard errors of estimated kernel matrices."""

import numpy as np

from ntkpipe.pipeline.query.names import Doubles, MatrixName, Positions
from ntkpipe.pipeline.query.reader import AbstractRunReader


def standard_errors(reader: AbstractRunReader, name: MatrixName, rows: Positions, columns: Positions) -> Doubles:
    """Return the standard errors of a kernel's entries, (M, N); zeros for an exact kernel.

    The two halves of the features are independent sketches. Each estimates an entry by twice its inner product; the
    estimate is their mean, and half their difference is its standard error. A single entry's has one degree of freedom
    only: look at many of them, such as their root mean square.
    """
    kernel, _ = reader.manifest.geometry.matrix(name.kernel)
    if not kernel.sketched or kernel.width > 1:
        return np.zeros((len(rows), len(columns)))
    # A kernel between two members has features of each; every other one of the member that it is named with.
    references = [f"{name.kernel}@{member}" for member in kernel.members] if kernel.cross else [name.kernel] * 2
    sides = list(zip(references, (name.rows, name.columns), (rows, columns), strict=True))
    one, other = (reader.features(reference, split, at).astype(np.float64) for reference, split, at in sides)
    half = one.shape[-1] // 2
    first, second = (one[..., part] @ other[..., part].swapaxes(-1, -2) for part in (slice(half), slice(half, None)))
    difference = first - second
    errors: Doubles = np.abs(difference.sum(axis=0) if difference.ndim == 3 else difference)
    if kernel.cosine:
        scale = np.sqrt(np.outer(*(reader.diagonal(reference, split)[at] for reference, split, at in sides)))
        errors = np.divide(errors, scale, out=np.zeros_like(errors), where=scale > 0)
    return errors
