"""A matrix in memory."""

from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.base import AbstractOperator, Tags
from ntkpipe.workers.operators.checks import check_finite, symmetrised

BLOCK_ROWS = 1024

CONVERTED_ROWS = 128
"""Rows that a product converts together."""


@final
class DenseOperator(AbstractOperator):
    """An (N, N) tensor, checked and symmetrised. An exactly symmetric tensor is kept without a copy.

    Raises:
        ConfigError: It is not square, or empty.
        NumericalError: It holds NaN or infinity, or is not symmetric; says where.
    """

    def __init__(self, matrix_NN: torch.Tensor, *, block_rows: int = BLOCK_ROWS) -> None:
        if matrix_NN.dim() != 2 or matrix_NN.shape[0] != matrix_NN.shape[1] or not len(matrix_NN):
            raise ConfigError(f"expected a square kernel matrix, found shape {tuple(matrix_NN.shape)}.")
        check_finite("the kernel matrix", matrix_NN)
        self._matrix_NN = symmetrised(matrix_NN)
        self.size = len(matrix_NN)
        self.dtype = matrix_NN.dtype
        self.block_rows = min(block_rows, self.size)
        self.num_parts = 1
        self.tags = Tags()

    def partial(self, vectors_NT: torch.Tensor, part: int) -> torch.Tensor:
        """Multiply in the precision of the vectors, some rows at a time where entries are converted."""
        if vectors_NT.dtype == self.dtype:
            # The matrix is its own transpose, and few rows times a matrix are quicker than a matrix times few columns.
            return (vectors_NT.T @ self._matrix_NN).T.contiguous()
        product_TN = vectors_NT.new_empty(vectors_NT.shape[1], self.size)
        # One strip is converted after the other into the same memory, which stays in the processor's cache.
        strip_MN = vectors_NT.new_empty(min(CONVERTED_ROWS, self.size), self.size)
        for start in range(0, self.size, CONVERTED_ROWS):
            rows_MN = self._matrix_NN[start : start + CONVERTED_ROWS]
            converted_MN = strip_MN[: len(rows_MN)].copy_(rows_MN)
            product_TN[:, start : start + CONVERTED_ROWS] = vectors_NT.T @ converted_MN.T
        return product_TN.T.contiguous()

    def diagonal(self) -> torch.Tensor:
        """Return the diagonal."""
        return self._matrix_NN.diagonal()

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows; not a copy."""
        return self._matrix_NN[start:stop]

    def entries(self, rows_R: torch.Tensor, columns_S: torch.Tensor) -> torch.Tensor:
        """Pick entries."""
        return self._matrix_NN[rows_R.unsqueeze(1), columns_S]
