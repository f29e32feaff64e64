"""Eigenvalues from the scalars of conjugate gradients."""

import torch

MOST = 300
"""Scalars beyond these are not used; extreme Ritz values have settled by then."""


def ritz_extremes(rates_I: torch.Tensor, ratios_I: torch.Tensor) -> tuple[float, float]:
    """Return the largest and the smallest Ritz value of P^-1 A, which lie between its extreme eigenvalues.

    With steps a_i and direction ratios b_i, they are eigenvalues of the tridiagonal matrix with 1 / a_i + b_(i-1) /
    a_(i-1) on the diagonal and sqrt(b_i) / a_i beside it (Golub and Van Loan, "Matrix computations", 10.2).

    Args:
        rates_I: a_0 to a_(I-1), positive, float64, at least one.
        ratios_I: b_0 to b_(I-1), at least 0; the last one is not used.
    """
    inverse_I = 1 / rates_I[:MOST]
    coupled_I = ratios_I[:MOST] * inverse_I
    diagonal_I = inverse_I.clone()
    diagonal_I[1:] += coupled_I[:-1]
    beside_I = ratios_I[:MOST].sqrt() * inverse_I
    matrix_II = torch.diag(diagonal_I) + torch.diag(beside_I[:-1], 1) + torch.diag(beside_I[:-1], -1)
    values_I = torch.linalg.eigvalsh(matrix_II)
    return float(values_I[-1]), float(values_I[0])
