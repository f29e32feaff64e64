"""How alike two kernels of the same samples are.

With H = I - 1 1^T / n and <A, B> = sum_ij A_ij B_ij:

* *alignment*: <HKH, HLH> / (|HKH| |HLH|), the centred kernel alignment (C. Cortes, M. Mohri, A. Rostamizadeh, 2012), known
  as linear CKA between representations (S. Kornblith et al., 2019): 1 for kernels that are equal up to scale and up to
  what depends on one sample only.
* *correlation*: Pearson's, of all entries.
* *relative difference*: |K - L| / |K|, 1 where both the difference and K are unlike zero by as much.

All of it follows from sums over entries and over rows, so that one pass over both matrices is enough. From all entries a
constant is subtracted first, which changes neither the alignment nor the correlation, and spares digits.
"""

from dataclasses import dataclass
from typing import Final, final

import numpy as np

from ntkpipe.configs.errors import ConfigError, RunMismatchError
from ntkpipe.pipeline.pictures.progress import Progress
from ntkpipe.pipeline.query.names import Doubles, MatrixName, Positions
from ntkpipe.pipeline.query.run import Run
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.matrix import AbstractMatrix

MAX_SAMPLES: Final = 20_000
"""All are looked at up to so many; of more, evenly spaced blocks."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How alike two kernels are."""

    alignment: float | None
    """Centred kernel alignment; None for a kernel that is constant."""
    correlation: float | None
    """Of entries; None for a kernel that is constant."""
    relative_difference: float | None
    """|K - L| / |K|; None for a K that is zero."""
    num_compared: int
    """Samples that were looked at."""
    num_samples: int
    """Of the split."""


def check_comparable(one: Run, first: MatrixName, other: Run, second: MatrixName) -> None:
    """Refuse kernels that are not of the same samples.

    Raises:
        RunMismatchError: The samples differ.
        ConfigError: A kernel has several rows per sample.
    """
    for run, name in ((one, first), (other, second)):
        if run.shape_of(name.kernel)[0].width > 1:
            raise ConfigError(f"kernel {name.kernel!r} has several rows per sample; compare kernels of samples.")
    sides = ((first.rows, second.rows), (first.columns, second.columns))
    for mine, theirs in sides:
        if one is not other or mine != theirs:
            _check_same_ids(one.ids(mine), other.ids(theirs), mine, theirs)


def compare(
    one: AbstractMatrix, other: AbstractMatrix, progress: Progress, max_samples: int = MAX_SAMPLES
) -> Comparison:
    """Compare two square matrices of the same samples in one pass. Memory is O(N) and some tiles.

    Raises:
        ChunkNotReadyError: A block that is needed is not committed yet.
        CorruptChunkError: A block is damaged.
    """
    size = one.size
    compared = spans(size, max(one.block_rows, other.block_rows), max_samples)
    symmetric = one.symmetric and other.symmetric
    progress.expect(len(compared) * (len(compared) + 1) // 2 if symmetric else len(compared) ** 2)
    sums = _Sums(size, _mean(one), _mean(other))
    for row, rows in enumerate(compared):
        for columns in compared[: row + 1] if symmetric else compared:
            tiles = one.read(rows, columns), other.read(rows, columns)
            sums.add(rows, columns, *tiles, mirrored=symmetric and columns is not rows)
            progress.advance()
    return sums.result(np.concatenate(compared))


@final
class _Sums:
    """Sums over entries K and L of two matrices, less a constant each, and over their rows and columns."""

    def __init__(self, size: int, shift_one: float, shift_other: float) -> None:
        self._size = size
        self._shifts = (shift_one, shift_other)
        self._products = np.zeros((2, 2))
        self._rows_2N = np.zeros((2, size))
        self._columns_2N = np.zeros((2, size))
        self._squared_difference = 0.0

    def add(self, rows: Positions, columns: Positions, left: Array, right: Array, *, mirrored: bool) -> None:
        """Add a rectangle of both; ``mirrored``: and its transpose on the other side of the diagonal."""
        times = 2 if mirrored else 1
        difference = np.subtract(left, right, dtype=np.float64)
        self._squared_difference += times * float(np.vdot(difference, difference))
        both = [
            np.subtract(values, shift, dtype=np.float64)
            for values, shift in zip((left, right), self._shifts, strict=True)
        ]
        for index, values in enumerate(both):
            of_rows, of_columns = values.sum(axis=1), values.sum(axis=0)
            self._rows_2N[index, rows] += of_rows
            self._columns_2N[index, columns] += of_columns
            if mirrored:
                self._rows_2N[index, columns] += of_columns
                self._columns_2N[index, rows] += of_rows
            for other in range(index + 1):
                product = times * float(np.vdot(values, both[other]))
                self._products[index, other] += product
                self._products[other, index] += product if other != index else 0.0

    def result(self, positions: Positions) -> Comparison:
        """Return what the sums say of the samples that were looked at."""
        num = len(positions)
        rows, columns = self._rows_2N[:, positions], self._columns_2N[:, positions]
        totals = rows.sum(axis=1)
        squares = np.outer(totals, totals) / num**2
        centred = self._products - (rows @ rows.T + columns @ columns.T) / num + squares
        varied = self._products - squares
        shift = self._shifts[0]
        squared = float(self._products[0, 0] + 2 * shift * totals[0] + (num * shift) ** 2)
        difference = float(np.sqrt(self._squared_difference / squared)) if squared > 0 else None
        return Comparison(
            _normalised(centred, self._products), _normalised(varied, self._products), difference, num, self._size
        )


def _mean(matrix: AbstractMatrix) -> float:
    """Return about what all entries share."""
    return float(matrix.any_tile(0, 0).mean(dtype=np.float64))


def _normalised(products: Doubles, before: Doubles) -> float | None:
    """Return the cosine of two matrices from their inner products; None where one is nothing but rounding."""
    if any(products[index, index] <= 1e-12 * before[index, index] for index in range(2)):
        return None
    return float(np.clip(products[0, 1] / np.sqrt(products[0, 0] * products[1, 1]), -1, 1))


def spans(size: int, step: int, max_samples: int = MAX_SAMPLES) -> list[Positions]:
    """Return the positions of blocks of samples that are compared: of all, or of evenly spaced ones that have so many."""
    blocks = num_chunks(size, step)
    chosen = list(range(blocks))
    if size > max_samples:
        chosen = np.unique(np.linspace(0, blocks - 1, max(1, max_samples // step)).round().astype(int)).tolist()
    return [np.arange(block * step, min((block + 1) * step, size)) for block in chosen]


def _check_same_ids(mine: list[str], theirs: list[str], split: str, other: str) -> None:
    if mine == theirs:
        return
    if len(mine) != len(theirs):
        raise RunMismatchError(
            f"split {split!r} has {len(mine)} samples and {other!r} of the other has {len(theirs)}; compare kernels of the same."
        )
    at = next(index for index, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    raise RunMismatchError(
        f"sample {at} is {mine[at]!r} in split {split!r} and {theirs[at]!r} in {other!r} of the other; compare kernels of the "
        "same samples in the same order."
    )
