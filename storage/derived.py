"""Kernel matrices that are made of other ones, tile by tile, when they are read."""

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from ntkpipe.storage.arrays import Array
from ntkpipe.storage.kernel import AbstractMatrix

Doubles = npt.NDArray[np.float64]

Combine = Callable[[list[Doubles], slice, slice], Doubles]
"""(tiles of the parents, rows, columns) to a tile, all in float64."""


@final
class DerivedMatrix(AbstractMatrix):
    """Entries that are a function of the same entries of other matrices, and of what is known of the two samples."""

    def __init__(self, parents: Sequence[AbstractMatrix], combine: Combine, *, symmetric: bool) -> None:
        first = parents[0]
        self._parents = parents
        self._combine = combine
        self.shape = first.shape
        self.block_rows = first.block_rows
        self.symmetric = symmetric
        self.dtype = first.dtype

    def tile(self, row: int, column: int) -> Array:
        """Read the parents' tiles and combine them in double precision."""
        tiles = [parent.any_tile(row, column).astype(np.float64) for parent in self._parents]
        return self._combine(tiles, self.span(row), self.span(column, axis=1)).astype(self.dtype)


def weighted_sum(weights: Sequence[float]) -> Combine:
    """Return sum_t w_t K_t."""

    def combine(tiles: list[Doubles], rows: slice, columns: slice) -> Doubles:
        total = weights[0] * tiles[0]
        for weight, tile in zip(weights[1:], tiles[1:], strict=True):
            total += weight * tile
        return total

    return combine


def product(tiles: list[Doubles], rows: slice, columns: slice) -> Doubles:
    """Return prod_t K_t, entry by entry."""
    total = tiles[0].copy()
    for tile in tiles[1:]:
        total *= tile
    return total


def power(exponent: int) -> Combine:
    """Return K^exponent, entry by entry."""
    return lambda tiles, rows, columns: tiles[0] ** exponent


def normalised(row_diagonal_N: Array, column_diagonal_M: Array) -> Combine:
    """Return K(x, x') / sqrt(K(x, x) K(x', x')); 0 where a diagonal is 0."""
    row_roots_N, column_roots_M = _inverse_roots(row_diagonal_N), _inverse_roots(column_diagonal_M)
    # The outer product first: of a symmetric tile it is symmetric to the last bit.

    def combine(tiles: list[Doubles], rows: slice, columns: slice) -> Doubles:
        scale: Doubles = np.outer(row_roots_N[rows], column_roots_M[columns])
        return scale * tiles[0]

    return combine


def centred(row_means_N: Array, column_means_M: Array, mean: float) -> Combine:
    """Return K(x, x') - m(x) - m(x') + mean m."""
    return lambda tiles, rows, columns: tiles[0] - np.add.outer(row_means_N[rows], column_means_M[columns]) + mean


def posterior(read_rows: Callable[[slice], Array], read_columns: Callable[[slice], Array]) -> Combine:
    """Return K(x, x') - <v(x), v(x')> with v(x) = L^-1 K(S, x), L L^T = K(S, S) + noise I."""

    def combine(tiles: list[Doubles], rows: slice, columns: slice) -> Doubles:
        left = read_rows(rows)
        # One array with itself: its products are symmetric to the last bit.
        right = left if read_rows is read_columns and rows == columns else read_columns(columns)
        explained: Doubles = left @ right.T
        return tiles[0] - explained

    return combine


def _inverse_roots(diagonal_N: Array) -> Doubles:
    roots_N = np.sqrt(diagonal_N.astype(np.float64))
    inverse_N: Doubles = np.divide(1.0, roots_N, out=np.zeros_like(roots_N), where=roots_N > 0)
    return inverse_N
