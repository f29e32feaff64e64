"""A matrix in memory."""

from typing import final

import torch

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.base import AbstractOperator

SYMMETRY_TOLERANCE = 1e-5
"""Largest |K_ij - K_ji| allowed, as a share of the largest diagonal entry."""

BLOCK_ROWS = 1024


@final
class DenseOperator(AbstractOperator):
    """An (N, N) tensor, checked and symmetrised.

    Raises:
        ConfigError: It is not square.
        NumericalError: It holds NaN or infinity, or is not symmetric; says where.
    """

    def __init__(self, matrix_NN: torch.Tensor) -> None:
        if matrix_NN.dim() != 2 or matrix_NN.shape[0] != matrix_NN.shape[1]:
            raise ConfigError(f"expected a square kernel matrix, found shape {tuple(matrix_NN.shape)}.")
        check_finite("the kernel matrix", matrix_NN)
        asymmetry = (matrix_NN - matrix_NN.T).abs()
        worst = int(asymmetry.argmax())
        allowed = SYMMETRY_TOLERANCE * float(matrix_NN.diagonal().abs().max())
        if float(asymmetry.flatten()[worst]) > allowed:
            row, column = divmod(worst, len(matrix_NN))
            raise NumericalError(
                f"the kernel matrix is not symmetric: K[{row}, {column}] = {float(matrix_NN[row, column]):g} but "
                f"K[{column}, {row}] = {float(matrix_NN[column, row]):g}. Pass (K + K.T) / 2 if the difference is noise."
            )
        self._matrix_NN = (matrix_NN + matrix_NN.T) / 2
        self.size = len(matrix_NN)
        self.dtype = matrix_NN.dtype
        self.block_rows = min(BLOCK_ROWS, self.size)

    def matmat(self, vectors_NT: torch.Tensor) -> torch.Tensor:
        """Multiply in the precision of the vectors, some rows at a time."""
        blocks = self._matrix_NN.split(self.block_rows)
        return torch.cat([block.to(vectors_NT.dtype) @ vectors_NT for block in blocks])

    def diagonal(self) -> torch.Tensor:
        """Return the diagonal."""
        return self._matrix_NN.diagonal()

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows; not a copy."""
        return self._matrix_NN[start:stop]


def check_finite(what: str, values_NT: torch.Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        NumericalError: Names the first bad row and column.
    """
    bad = (~torch.isfinite(values_NT)).nonzero()
    if len(bad):
        row, column = (int(index) for index in bad[0])
        raise NumericalError(
            f"{what} is NaN or infinite at row {row}, column {column}, and in {len(bad)} entries altogether. "
            "Find the sample that causes it and remove or repair it."
        )
