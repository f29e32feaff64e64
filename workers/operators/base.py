"""The operator seam: a symmetric matrix known by its products."""

from abc import ABC, abstractmethod

import torch


class AbstractOperator(ABC):
    """A symmetric N x N matrix that solvers use without knowing where its entries are.

    Attributes:
        size: N.
        dtype: Of the products.
        block_rows: How many consecutive rows are cheapest to read together.
    """

    size: int
    dtype: torch.dtype
    block_rows: int

    @abstractmethod
    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Return the product with (N, T) vectors, accumulated in a fixed order."""

    @abstractmethod
    def diagonal(self) -> torch.Tensor:
        """Return the (N,) diagonal."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start`` to ``stop`` as a (stop - start, N) tensor."""

    def dense(self) -> torch.Tensor:
        """Return the whole (N, N) matrix."""
        return torch.cat(
            [
                self.rows(start, min(start + self.block_rows, self.size))
                for start in range(0, self.size, self.block_rows)
            ]
        )
