"""The operator seam: a symmetric matrix known by its products.

Operators compose: ``K + L``, ``2.0 * K``, ``K @ V``, and :mod:`ntkpipe.workers.operators.algebra` for the rest.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ntkpipe.workers.operators.rectangle import AbstractRectangle


@dataclass(frozen=True, slots=True)
class Tags:
    """What is known of a matrix without looking at it."""

    positive_semidefinite: bool = False
    """By construction, such as a Gram matrix of real features; False says nothing."""
    entry_bytes: float = 0.0
    """Read from storage for an entry of a row; 0 for what is in memory or computed."""
    entry_flops: float = 0.0
    """Spent on an entry whenever it is read; 0 for what is kept."""
    halved_products: bool = False
    """Whether a product reads every pair of equal entries once."""
    features: "AbstractRectangle | None" = None
    """(N, K) features whose Gram matrix this is, where there are some."""


class AbstractOperator(ABC):
    """A symmetric N x N matrix that solvers use without knowing where its entries are.

    Attributes:
        size: N.
        dtype: Of the entries.
        block_rows: How many consecutive rows are cheapest to read together.
        num_parts: In how many parts a product is computed; other processes may compute some of them.
        tags: What is known of the matrix.
    """

    size: int
    dtype: torch.dtype
    block_rows: int
    num_parts: int
    tags: Tags

    @abstractmethod
    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Return one of the (N, T) summands of a product, in the precision of the vectors."""

    @abstractmethod
    def diagonal(self) -> torch.Tensor:
        """Return the (N,) diagonal."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start`` to ``stop`` as a (stop - start, N) tensor; it may share memory with the operator."""

    @abstractmethod
    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Return the (R, S) entries at all pairs of some positions, given as int64 tensors."""

    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Return the product with (N, T) vectors: parts are added in their order, which fixes every bit."""
        return ordered_sum(self.partial(vectors_NT, part) for part in range(self.num_parts))

    def dense(self) -> torch.Tensor:
        """Return the whole (N, N) matrix; it may share memory with the operator."""
        if self.block_rows >= self.size:
            return self.rows(0, self.size)
        starts = range(0, self.size, self.block_rows)
        return torch.cat([self.rows(start, min(start + self.block_rows, self.size)) for start in starts])

    def columns(self, positions_S: torch.Tensor) -> torch.Tensor:
        """Return the (N, S) columns at some positions."""
        return self.entries(torch.arange(self.size), positions_S)

    def submatrix(self, positions_S: torch.Tensor) -> torch.Tensor:
        """Return the (S, S) matrix of some positions, float64 and symmetric to the last bit."""
        matrix_SS = self.entries(positions_S, positions_S).double()
        return (matrix_SS + matrix_SS.T) / 2

    def __matmul__(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        return self.matmat(vectors_NT)

    def __add__(self, other: "AbstractOperator") -> "AbstractOperator":
        from ntkpipe.workers.operators.algebra import SumOperator

        return SumOperator(self, other)

    def __mul__(self, scale: float) -> "AbstractOperator":
        from ntkpipe.workers.operators.algebra import ScaledOperator

        return ScaledOperator(self, scale)

    __rmul__ = __mul__


def ordered_sum(summands: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the sum of at least one tensor, from the first to the last; the first one is overwritten if there are more."""
    total: torch.Tensor | None = None
    for summand in summands:
        total = summand if total is None else total.add_(summand)
    assert total is not None
    return total
