"""Kernel matrices that are made of other ones, tile by tile, when they are read."""

from collections.abc import Callable, Sequence
from typing import final

import numpy as np
import numpy.typing as npt

from ntkpipe.storage.arrays import Array
from ntkpipe.storage.committed import Scratch
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.picking import Picks, picked

Doubles = npt.NDArray[np.float64]

Combine = Callable[[list[Doubles], Picks, Picks], Doubles]
"""(entries of the parents, their rows, their columns) to entries, all in float64."""


@final
class DerivedMatrix(AbstractMatrix):
    """Entries that are a function of the same entries of other matrices, and of what is known of the two samples.

    Args:
        parents: The other matrices.
        combine: The function.
        symmetric: Whether the result is.
        known: Returns a text that is another one whenever what the function knows of samples is.
        by_tiles: Whether the function is only ever given whole tiles: entries that it makes by products of matrices are
            the same to the last bit in matrices of the same size only.
        dtype: Of its entries; that of the first parent by default.
    """

    def __init__(
        self,
        parents: Sequence[AbstractMatrix],
        combine: Combine,
        *,
        symmetric: bool,
        known: Callable[[], str] = str,
        by_tiles: bool = False,
        dtype: "np.dtype[np.floating] | None" = None,
    ) -> None:
        first = parents[0]
        self._parents = parents
        self._combine = combine
        self._known = known
        self._by_tiles = by_tiles
        self.shape = first.shape
        self.block_rows = first.block_rows
        self.symmetric = symmetric
        self.dtype = first.dtype if dtype is None else dtype

    @property
    def num_leaves(self) -> int:
        """As many as of all parents."""
        return sum(parent.num_leaves for parent in self._parents)

    def tile(self, row: int, column: int) -> Array:
        """Read the parents' tiles and combine them in double precision."""
        tiles = [parent.any_tile(row, column).astype(np.float64) for parent in self._parents]
        return self._combine(tiles, self.span(row), self.span(column, axis=1)).astype(self.dtype)

    def part(self, row: int, column: int, rows: Picks, columns: Picks, scratch: Scratch) -> Array:
        """Read the parents' entries and combine them in double precision."""
        if self._by_tiles:
            return picked(self.tile(row, column), rows, columns)
        entries = [parent.any_part(row, column, rows, columns, scratch).astype(np.float64) for parent in self._parents]
        first_row, first_column = row * self.block_rows, column * self.block_rows
        combined = self._combine(entries, _shifted(rows, first_row), _shifted(columns, first_column))
        return combined.astype(self.dtype)

    def task(self, row: int, column: int) -> str:
        """Return the parents', which is the same one."""
        return self._parents[0].task(row, column)

    def missing(self, tasks: Sequence[str]) -> list[str]:
        """Ask a parent."""
        return self._parents[0].missing(tasks)

    def holds(self, row: int, column: int) -> bool:
        """Ask all parents."""
        return all(parent.holds(row, column) for parent in self._parents)

    def version(self, row: int, column: int) -> str:
        """Join those of the parents, and what is known of samples."""
        return "-".join((*(parent.version(row, column) for parent in self._parents), self._known()))


def _shifted(picks: Picks, by: int) -> Picks:
    return slice(picks.start + by, picks.stop + by) if isinstance(picks, slice) else picks + by


def weighted_sum(weights: Sequence[float]) -> Combine:
    """Return sum_t w_t K_t."""

    def combine(tiles: list[Doubles], rows: Picks, columns: Picks) -> Doubles:
        total = weights[0] * tiles[0]
        for weight, tile in zip(weights[1:], tiles[1:], strict=True):
            total += weight * tile
        return total

    return combine


def product(tiles: list[Doubles], rows: Picks, columns: Picks) -> Doubles:
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

    def combine(tiles: list[Doubles], rows: Picks, columns: Picks) -> Doubles:
        scale: Doubles = np.outer(row_roots_N[rows], column_roots_M[columns])
        return scale * tiles[0]

    return combine


def centred(row_means_N: Array, column_means_M: Array, mean: float) -> Combine:
    """Return K(x, x') - m(x) - m(x') + mean m."""
    return lambda tiles, rows, columns: tiles[0] - np.add.outer(row_means_N[rows], column_means_M[columns]) + mean


def posterior(read_rows: Callable[[slice], Array], read_columns: Callable[[slice], Array]) -> Combine:
    """Return K(x, x') - <v(x), v(x')> with v(x) = L^-1 K(S, x), L L^T = K(S, S) + noise I."""

    def combine(tiles: list[Doubles], rows: Picks, columns: Picks) -> Doubles:
        assert isinstance(rows, slice), "whole tiles"
        assert isinstance(columns, slice), "whole tiles"
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
