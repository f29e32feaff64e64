"""Eigenvalues of kernel matrices of the training split, over whatever reads a kernel."""

import numpy as np

from ntkpipe.configs.errors import ConfigError, TooLargeError
from ntkpipe.pipeline.query.names import Doubles, MatrixName, Positions, Spectrum
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.query.selection import rows_of_samples
from ntkpipe.workers.analyses.base import evenly_spaced
from ntkpipe.workers.analyses.decomposition import decompose

MAX_SAMPLES = 4000
"""Rows of the largest matrix that is decomposed: 9 N^3 operations and 400 MB for so many."""

DEFAULT_SAMPLES = 1000


def spectrum(reader: AbstractRunReader, name: MatrixName, max_samples: int) -> Spectrum:
    """Return the eigenvalues of a symmetric matrix of the training split, in float64, and its label energy.

    Of a kernel of (sample, output) pairs, M counts samples, and the label energy is that of the single vector of all
    outputs of all samples, which such a kernel is solved for.

    Args:
        reader: Of the run.
        name: Of the matrix.
        max_samples: At most so many evenly spaced samples are taken.

    Raises:
        ConfigError: The matrix is not symmetric, or ``max_samples`` is below 1.
        TooLargeError: The matrix would be too large to decompose.
    """
    geometry = reader.manifest.geometry
    kernel, _ = geometry.matrix(name.kernel)
    if name.rows != name.columns or not kernel.symmetric:
        what = f"between {name.rows!r} and {name.columns!r}" if name.rows != name.columns else "not symmetric"
        raise ConfigError(f"kernel {name.kernel!r} is {what}, so that it has no spectrum of real eigenvalues.")
    if max_samples < 1:
        raise ConfigError(f"max_samples = {max_samples} must be at least 1.")
    num_samples = geometry.splits[name.rows].num_samples
    size = min(max_samples, num_samples) * kernel.width
    if size > MAX_SAMPLES:
        raise TooLargeError(
            f"the spectrum would be that of a matrix of {size:,} rows; expected at most {MAX_SAMPLES:,}. Ask for "
            f"max_samples = {max(1, MAX_SAMPLES // kernel.width):,}: evenly spaced samples.",
            limit=MAX_SAMPLES,
            asked=size,
        )
    at = evenly_spaced(num_samples, max_samples)
    rows = rows_of_samples(at, kernel.width)
    eigenvalues, energy = decompose(
        reader.entries(name, rows, rows, "raise"), _targets(reader, name.rows, at, kernel.width)
    )
    return Spectrum(eigenvalues, energy, num_samples)


def _targets(reader: AbstractRunReader, split: str, at: Positions, width: int) -> Doubles | None:
    """Return the (M, T) targets of some samples, (M C, 1) for pairs; None where there are none that fit."""
    shape, labels = reader.manifest.geometry.splits[split], reader.labels(split)
    if labels is None or shape.labels == "none":
        return None
    if shape.labels == "classes":
        targets_MT: Doubles = np.eye(shape.num_targets)[labels[at]]
    else:
        targets_MT = labels[at].astype(np.float64).reshape(len(at), -1)
    if width == 1:
        return targets_MT
    return targets_MT.reshape(-1, 1) if targets_MT.shape[1] == width else None
