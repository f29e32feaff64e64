"""Sums of a kernel's components, cosines and centred kernels: made when they are read, of whatever a run stores."""

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock
from typing import Literal, final

import numpy as np

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.storage import derived
from ntkpipe.storage.arrays import checksum
from ntkpipe.storage.derived import DerivedMatrix, Doubles
from ntkpipe.storage.matrices import MatrixReader, checked_variances
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.records import Geometry

Transform = Literal["cosine", "centred"]

KEPT_MEANS = 64
"""Of different matrices; N numbers each."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A kernel, or the sum of some of its components, with transforms."""

    reference: str
    """NAME, or NAME@MEMBER."""
    layers: tuple[str, ...] = ()
    """Components that are summed; empty for the kernel itself."""
    transforms: tuple[Transform, ...] = ()
    """In the order in which they are applied; only of a symmetric kernel of samples."""

    @property
    def inner(self) -> "Formula":
        """What the last transform is applied to."""
        return Formula(self.reference, self.layers, self.transforms[:-1])


@final
class TransformReader:
    """Matrices of formulas, with the same definitions as the derived kernels ``normalised`` and ``centred``. Thread safe.

    ``cosine`` divides by the exact K(x, x) where they are known, also of a projected kernel, whose own cosine is then close
    to 1 on the diagonal and not 1; a sum of components has only those of its matrix. ``centred`` takes means over the
    training split, in one pass over the matrix; they are kept.

    Args:
        matrices: Of the run.
        geometry: Of the run.
        num_threads: That read side by side in such a pass.
    """

    def __init__(self, matrices: MatrixReader, geometry: Geometry, *, num_threads: int) -> None:
        self._matrices = matrices
        self._geometry = geometry
        self._num_threads = num_threads
        self._means: OrderedDict[tuple[Formula, str], Doubles] = OrderedDict()
        self._passes: dict[tuple[Formula, str], Lock] = {}
        self._lock = Lock()

    def matrix(
        self, formula: Formula, row_split: str, column_split: str, *, cache_bytes: int | None = None
    ) -> AbstractMatrix:
        """Return a matrix; entries are transformed in double precision and rounded once.

        Args:
            formula: Of the matrix.
            row_split: Of the rows.
            column_split: Of the columns; as for :meth:`MatrixReader.matrix`.
            cache_bytes: As for :meth:`MatrixReader.matrix`.

        Raises:
            ChunkNotReadyError: A diagonal, or a matrix whose means are needed, is not committed.
            NotFoundError: A diagonal is needed, and it is neither stored nor in a stored matrix.
            NumericalError: A variance is negative.
        """
        last = np.dtype(self._geometry.dtype)
        return self._matrix(formula, row_split, column_split, cache_bytes, last)

    def passes(self, formula: Formula, row_split: str, column_split: str) -> list[str]:
        """Return the splits of whose rows whole matrices to the training split have yet to be read for means."""
        with self._lock:
            known = set(self._means)
        found, splits = dict[str, None](), (row_split, column_split, self._geometry.train_split)
        while formula.transforms:
            if formula.transforms[-1] == "centred":
                found |= dict.fromkeys(split for split in splits if (formula.inner, split) not in known)
            formula = formula.inner
        return list(found)

    def _matrix(
        self,
        formula: Formula,
        row_split: str,
        column_split: str,
        cache_bytes: int | None,
        dtype: "np.dtype[np.floating]",
    ) -> AbstractMatrix:
        if not formula.transforms:
            return self._sum(formula, row_split, column_split, cache_bytes, dtype)
        within = self._matrix(formula.inner, row_split, column_split, cache_bytes, np.dtype(np.float64))
        if formula.transforms[-1] == "cosine":
            sides = [self._variances(formula.inner, split) for split in (row_split, column_split)]
            combine = derived.normalised(*sides)
        else:
            splits = (row_split, column_split, self._geometry.train_split)
            sides = [self._means_of(formula.inner, split) for split in splits]
            rows_N, columns_M, train = sides
            combine = derived.centred(rows_N, columns_M, float(train.mean()))
        known = cache(lambda: "-".join(map(checksum, sides)))
        return DerivedMatrix([within], combine, symmetric=within.symmetric, known=known, dtype=dtype)

    def _sum(
        self,
        formula: Formula,
        row_split: str,
        column_split: str,
        cache_bytes: int | None,
        dtype: "np.dtype[np.floating]",
    ) -> AbstractMatrix:
        components: tuple[str | None, ...] = formula.layers or (None,)
        found = [
            self._matrices.matrix(formula.reference, row_split, column_split, component=name, cache_bytes=cache_bytes)
            for name in components
        ]
        if len(found) == 1:
            return found[0]
        weights = derived.weighted_sum([1.0] * len(found))
        return DerivedMatrix(found, weights, symmetric=found[0].symmetric, dtype=dtype)

    def _variances(self, formula: Formula, split: str) -> Doubles:
        what = f"the cosine of kernel {formula.reference!r} cannot be taken: K(x, x)"
        return checked_variances(self._diagonal(formula, split, estimated=False), what, split)

    def _diagonal(self, formula: Formula, split: str, *, estimated: bool) -> Doubles:
        """Return the diagonal of a matrix; the exact one where it is known, unless that of the matrix is wanted."""
        if not formula.transforms:
            if not formula.layers:
                return self._matrices.diagonal(formula.reference, split, estimated=estimated)
            return self._diagonal_of_components(formula, split)
        if formula.transforms[-1] == "cosine":
            found_N, exact_N = (
                self._diagonal(formula.inner, split, estimated=estimated),
                self._variances(formula.inner, split),
            )
            return np.divide(found_N, exact_N, out=np.zeros_like(found_N), where=exact_N > 0)
        means_N = self._means_of(formula.inner, split)
        mean = float(self._means_of(formula.inner, self._geometry.train_split).mean())
        # Means are those of the matrix, so the rest must be, too.
        centred_N: Doubles = self._diagonal(formula.inner, split, estimated=True) - 2 * means_N + mean
        return centred_N

    def _diagonal_of_components(self, formula: Formula, split: str) -> Doubles:
        if (split, split) not in self._geometry.pairs:
            raise NotFoundError(
                f"K(x, x) of a sum of components of kernel {formula.reference!r} is not stored for split {split!r}, as the run "
                f"has no kernel between {split!r} and itself. Transform the whole kernel, or add the pair [{split}, {split}] to "
                "data.pairs."
            )
        matrix = self._matrix(formula, split, split, 0, np.dtype(np.float64))
        return matrix.diagonal().astype(np.float64)

    def _means_of(self, formula: Formula, split: str) -> Doubles:
        """Return the mean of every row over the training split, in one pass however many threads ask at once."""
        key = (formula, split)
        with self._lock:
            pass_over = self._passes.setdefault(key, Lock())
        with pass_over:
            with self._lock:
                found = self._means.get(key)
                if found is not None:
                    self._means.move_to_end(key)
                    return found
            found = self._streamed_means(formula, split)
            found.flags.writeable = False
            with self._lock:
                self._means[key] = found
                while len(self._means) > KEPT_MEANS:
                    self._passes.pop(self._means.popitem(last=False)[0], None)
        return found

    def _streamed_means(self, formula: Formula, split: str) -> Doubles:
        train = self._geometry.train_split
        if not {(split, train), (train, split)} & set(self._geometry.pairs):
            raise NotFoundError(
                f"kernel {formula.reference!r} cannot be centred: the run has none between {split!r} and {train!r}, over which "
                f"means are taken. Add the pair [{split}, {train}] to data.pairs."
            )
        matrix = self._matrix(formula, split, train, 0, np.dtype(np.float64))
        tiles = matrix.tiles()
        matrix.require(tiles)
        parts = [tiles[first :: self._num_threads] for first in range(self._num_threads)]
        with ThreadPoolExecutor(self._num_threads) as threads:
            # Added in one order, whichever thread is done first.
            sums_N = np.sum(list(threads.map(partial(_row_sums, matrix), parts)), axis=0)
        means_N: Doubles = sums_N / matrix.shape[1]
        return means_N


def _row_sums(matrix: AbstractMatrix, tiles: list[tuple[int, int]]) -> Doubles:
    """Return the sums of all rows over some tiles and, of a symmetric matrix, over their mirror images."""
    sums_N = np.zeros(matrix.shape[0])
    for row, column in tiles:
        tile = matrix.tile(row, column)
        sums_N[matrix.span(row)] += tile.sum(axis=1, dtype=np.float64)
        if matrix.symmetric and row != column:
            sums_N[matrix.span(column)] += tile.sum(axis=0, dtype=np.float64)
    return sums_N
