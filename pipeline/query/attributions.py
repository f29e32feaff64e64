"""Predictions as sums over training samples: f(x) = sum_i K(x, x_i) a_i for the coefficients a of a solution.

Every solver leaves coefficients of this form, whatever its equation: those of models with few centres are 0 elsewhere,
weights of samples and early stopping are in them, a spectral filter's are those that the kernel itself is multiplied
with, and what a logistic loss predicts are logits. No solver adds a constant.
"""

import numpy as np

from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.pipeline.query.names import ClassShare, Doubles, MatrixName, Positions
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.query.selection import rows_of_samples
from ntkpipe.storage.arrays import Array
from ntkpipe.workers.analyses.ranking import NOBODY, Leaders


def solved_matrix(reader: AbstractRunReader, solution: str, split: str) -> MatrixName:
    """Return the matrix between a split and the training split whose system a solution solves.

    Raises:
        NotFoundError: The run stores no such matrix, or none of the name that the solution gives.
    """
    geometry = reader.manifest.geometry
    kernel = reader.solution_record(solution).kernel
    if kernel not in geometry.references:
        raise NotFoundError(
            f"{reader.url}: solution {solution!r} is of kernel {kernel!r}, which the run does not have."
        )
    if (split, geometry.train_split) not in geometry.pairs:
        raise NotFoundError(
            f"{reader.url} stores no kernel between {split!r} and {geometry.train_split!r}, so that it is not known what "
            f"each training sample contributes there. Add the pair [{split}, {geometry.train_split}] to data.pairs."
        )
    return MatrixName(kernel, split, geometry.train_split)


def attributions(
    reader: AbstractRunReader, solution: str, split: str, rows: Positions, target: int | None = None
) -> Doubles:
    """Return what every training sample contributes to predictions, K(x, x_i) a_i: (M, N, T), or (M, N) of one target.

    They sum to the predictions over N, but for rounding. Of a kernel of (sample, output) pairs, where outputs of a
    sample act on each other, it is sum_c K((x, t), (x_i, c)) a_ic. Memory is that of the answer, and of (M, N) entries, or
    (M C, N C).
    """
    name = solved_matrix(reader, solution, split)
    coefficients_NT = reader.solution(solution).astype(np.float64)
    kernel, _ = reader.manifest.geometry.matrix(name.kernel)
    num, width = len(coefficients_NT), kernel.width
    entries = reader.entries(name, rows_of_samples(rows, width), np.arange(num * width), "raise").astype(np.float64)
    if width > 1:
        outputs = slice(None) if target is None else slice(target, target + 1)
        pairs_MCNC = entries.reshape(len(rows), width, num, width)[:, outputs]
        found: Doubles = np.einsum("mtnc,nc->mnt", pairs_MCNC, coefficients_NT)
        return found if target is None else found[..., 0]
    if target is not None:
        entries *= coefficients_NT[:, target]
        return entries
    return entries[:, :, np.newaxis] * coefficients_NT


def shares(contributions_N: Doubles, classes_N: Array) -> tuple[ClassShare, ...]:
    """Return contributions summed by class, those above and those below 0."""
    found = []
    for label in np.unique(classes_N):
        values = contributions_N[classes_N == label]
        positive, negative = (float(values[part].sum()) for part in (values > 0, values < 0))
        found.append(ClassShare(int(label), len(values), positive, negative))
    return tuple(found)


def extremes(contributions_N: Doubles, k: int) -> tuple[Positions, Positions]:
    """Return positions of the k largest contributions above 0, and of the k smallest below 0; ties by position."""
    return _first(contributions_N, k, opposed=False), _first(contributions_N, k, opposed=True)


def _first(contributions_N: Doubles, k: int, *, opposed: bool) -> Positions:
    found = Leaders(1, min(k, len(contributions_N)), opposed=opposed)
    if found.positions.size:
        of_other_sign = contributions_N >= 0 if opposed else contributions_N <= 0
        columns = np.arange(len(contributions_N))
        found.add(np.array([0]), columns, contributions_N[np.newaxis], of_other_sign[np.newaxis])
    best: Positions = found.positions[found.positions != NOBODY]
    return best


def checked_target(target: int, num_targets: int, solution: str) -> int:
    """Return a target, if a solution has it.

    Raises:
        NotFoundError: It does not.
        ConfigError: It is no number.
    """
    if isinstance(target, bool) or not isinstance(target, int | np.integer):
        raise ConfigError(f"target = {target!r} must be the number of a column of the prediction.")
    if not 0 <= target < num_targets:
        raise NotFoundError(f"solution {solution!r} has no target {target}; its targets are 0 to {num_targets - 1}.")
    return int(target)
