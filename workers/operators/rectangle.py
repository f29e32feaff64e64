"""A rectangular matrix known by blocks of its rows: features, or a kernel between two sets of samples."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.checks import check_finite

BLOCK_ROWS = 1024


class AbstractMap(ABC):
    """A linear map known by its products.

    Attributes:
        shape: (M, N).
    """

    shape: tuple[int, int]

    @abstractmethod
    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Return the (M, T) product with (N, T) vectors, in their precision."""


class AbstractRectangle(AbstractMap):
    """An (M, N) matrix that is read some rows at a time.

    Attributes:
        dtype: Of the entries.
        block_rows: How many consecutive rows are cheapest to read together.
        entry_bytes: Read from storage for an entry; 0 for what is in memory.
    """

    dtype: torch.dtype
    block_rows: int
    entry_bytes: float

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start`` to ``stop``, (stop - start, N); finite, and maybe sharing memory with the matrix."""

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield all rows in order, in blocks."""
        for start in range(0, self.shape[0], self.block_rows):
            stop = min(start + self.block_rows, self.shape[0])
            yield slice(start, stop), self.rows(start, stop)

    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Multiply block by block."""
        return torch.cat([block.to(vectors_NT.dtype) @ vectors_NT for _, block in self.blocks()])

    def transposed_matmat(self, vectors_MT: torch.Tensor) -> torch.Tensor:
        """Return the (N, T) product of the transpose with (M, T) vectors, added up block by block."""
        product_NT = vectors_MT.new_zeros(self.shape[1], vectors_MT.shape[1])
        for span, block in self.blocks():
            product_NT.addmm_(block.to(vectors_MT.dtype).T, vectors_MT[span])
        return product_NT


@final
class DenseRectangle(AbstractRectangle):
    """An (M, N) tensor.

    Raises:
        ConfigError: It is not a matrix, or empty.
        NumericalError: It holds NaN or infinity; says where.
    """

    def __init__(self, matrix_MN: torch.Tensor, *, what: str = "the feature matrix") -> None:
        if matrix_MN.dim() != 2 or not matrix_MN.numel():
            raise ConfigError(f"expected {what} to have shape (N, K) with N, K >= 1, found {tuple(matrix_MN.shape)}.")
        check_finite(what, matrix_MN)
        self._matrix_MN = matrix_MN
        self.shape = (matrix_MN.shape[0], matrix_MN.shape[1])
        self.dtype = matrix_MN.dtype
        self.block_rows = min(BLOCK_ROWS, self.shape[0])
        self.entry_bytes = 0.0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows; not a copy."""
        return self._matrix_MN[start:stop]


@final
class FeatureProduct(AbstractMap):
    """The kernel Phi_1 Phi_2^T between two sets of samples, from their (M, K) and (N, K) features.

    Raises:
        ConfigError: They have different numbers of features.
    """

    def __init__(self, rows: AbstractRectangle, columns: AbstractRectangle) -> None:
        if rows.shape[1] != columns.shape[1]:
            raise ConfigError(f"features of {rows.shape[1]} and {columns.shape[1]} numbers have no inner products.")
        self._rows, self._columns = rows, columns
        self.shape = (rows.shape[0], columns.shape[0])

    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Multiply twice: O((M + N) K T), one pass over both."""
        return self._rows.matmat(self._columns.transposed_matmat(vectors_NT))
