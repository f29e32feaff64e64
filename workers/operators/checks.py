"""Refusing matrices on which a solver would return wrong numbers."""

import math

import torch

from ntkpipe.configs.errors import NumericalError

SYMMETRY_TOLERANCE = 1e-5
"""Largest |K_ij - K_ji| allowed, as a share of the largest diagonal entry."""

STRIP_ROWS = 1024


def check_finite(
    what: str, values_MN: torch.Tensor, *, row: int | torch.Tensor = 0, column: int | torch.Tensor = 0
) -> None:
    """Refuse NaN and infinity.

    Args:
        what: How the message calls the matrix.
        values_MN: The matrix, or a part of it.
        row: Where in the matrix the part's first row is, or (M,) where each of them is.
        column: Where its first column is, or (N,) where each of them is.

    Raises:
        NumericalError: Names the first bad row and column, and how many rows of the part are bad.
    """
    # A sum is finite only if all terms are, and is cheaper than a mask; only an overflowing sum needs the second look.
    if math.isfinite(float(values_MN.sum())):
        return
    bad_M = ~torch.isfinite(values_MN).all(dim=1)
    if not bad_M.any():
        return
    first = int(bad_M.nonzero()[0])
    at = int((~torch.isfinite(values_MN[first])).nonzero()[0])
    raise NumericalError(
        f"{what} is NaN or infinite at row {_place(row, first)}, column {_place(column, at)}, and in {int(bad_M.sum())} rows "
        "altogether. Find the sample that causes it and remove or repair it."
    )


def _place(origin: int | torch.Tensor, offset: int) -> int:
    return int(origin[offset]) if isinstance(origin, torch.Tensor) else origin + offset


def symmetrised(matrix_NN: torch.Tensor, *, start: int = 0) -> torch.Tensor:
    """Return (K + K^T) / 2, or the matrix itself where it is exactly symmetric already.

    Args:
        matrix_NN: A square matrix, or a square part on the diagonal of one.
        start: Where on the diagonal the part begins; for the message.

    Raises:
        NumericalError: The two triangles differ by more than 1e-5 of the largest diagonal entry; says where.
    """
    allowed = SYMMETRY_TOLERANCE * float(matrix_NN.diagonal().abs().max())
    symmetric = True
    for first in range(0, len(matrix_NN), STRIP_ROWS):
        strip = (matrix_NN[first : first + STRIP_ROWS] - matrix_NN[:, first : first + STRIP_ROWS].T).abs()
        worst = int(strip.argmax())
        difference = float(strip.flatten()[worst])
        symmetric = symmetric and difference == 0
        if difference > allowed:
            row, column = divmod(worst, len(matrix_NN))
            row += first
            raise NumericalError(
                f"the kernel matrix is not symmetric: K[{start + row}, {start + column}] = "
                f"{float(matrix_NN[row, column]):g} but K[{start + column}, {start + row}] = "
                f"{float(matrix_NN[column, row]):g}, allowed is a difference of {allowed:g}. Pass (K + K.T) / 2 if it "
                "is noise."
            )
    return matrix_NN if symmetric else (matrix_NN + matrix_NN.T) / 2
