"""The EigenPro preconditioner: leading eigendirections, estimated on a subsample, are flattened to one level."""

import numpy as np
import torch

MIN_LEVEL = 0.01
"""Directions are flattened at most down to this share of the largest diagonal entry, divided by the batch rows."""

INDEFINITE = 1e-6
"""An eigenvalue below minus this share of the largest one is no rounding error."""

KRYLOV_DEPTH = 3
"""Products that leading eigenvectors are made of, unless a whole decomposition is about as cheap."""

OVERSAMPLING = 10

INVERSE_ITERATIONS = 10


def leading_pairs(
    matrix_SS: torch.Tensor, num_pairs: int, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return about ``num_pairs`` largest eigenvalues of a symmetric matrix, descending, and their (S, Q) vectors.

    They are Ritz pairs of a block Krylov space, O(S^2 Q): vectors are orthonormal to rounding and values never exceed
    the true ones, which is all that flattening needs to be safe. Many pairs of a small matrix come from a whole
    decomposition, O(S^3).
    """
    num_points = len(matrix_SS)
    width = num_pairs + OVERSAMPLING
    if (KRYLOV_DEPTH + 1) * width >= num_points:
        eigenvalues_S, vectors_SS = (part.flip(-1) for part in torch.linalg.eigh(matrix_SS))
        return eigenvalues_S[:num_pairs], vectors_SS[:, :num_pairs].contiguous()
    basis_SW = torch.from_numpy(random.standard_normal((num_points, width)))
    blocks = []
    for _ in range(KRYLOV_DEPTH):
        basis_SW = torch.linalg.qr(matrix_SS @ basis_SW).Q
        blocks.append(basis_SW)
    space_SW = torch.linalg.qr(torch.cat(blocks, dim=1)).Q
    small_WW = space_SW.T @ (matrix_SS @ space_SW)
    values_W, rotation_WW = (part.flip(-1) for part in torch.linalg.eigh((small_WW + small_WW.T) / 2))
    return values_W[:num_pairs], space_SW @ rotation_WW[:, :num_pairs]


def is_indefinite(matrix_SS: torch.Tensor, ridge: float, largest: float) -> bool:
    """Return whether a symmetric matrix plus ridge I has an eigenvalue that is negative beyond rounding; O(S^3 / 3).

    Args:
        matrix_SS: The matrix; a principal sub-matrix of K proves what it says of K, by interlacing.
        ridge: The lambda.
        largest: The largest eigenvalue of the sum.
    """
    return largest <= 0 or _factorised(matrix_SS, ridge, largest) is None


def smallest_eigenvalue(matrix_SS: torch.Tensor, ridge: float, largest: float, random: np.random.Generator) -> float:
    """Return an estimate of the smallest eigenvalue of a symmetric matrix plus ridge I; O(S^3 / 3).

    It is a Rayleigh quotient after some inverse iterations, which is never less than the true one; nor is that of a
    principal sub-matrix of K less than that of K. It is 0 for a matrix that is indefinite, or singular to working precision.
    """
    lower_SS = _factorised(matrix_SS, ridge, largest)
    if lower_SS is None:
        return 0.0
    vector_S1 = torch.from_numpy(random.standard_normal((len(matrix_SS), 1)))
    for _ in range(INVERSE_ITERATIONS):
        vector_S1 = torch.cholesky_solve(vector_S1, lower_SS)
        vector_S1 = vector_S1 / torch.linalg.vector_norm(vector_S1)
    found = float(torch.sum(vector_S1 * (matrix_SS @ vector_S1))) + ridge
    return found if found > INDEFINITE * abs(largest) else 0.0


def _factorised(matrix_SS: torch.Tensor, ridge: float, largest: float) -> torch.Tensor | None:
    """Return the Cholesky factor of a matrix plus ridge I, shifted by what may be rounding; None if there is none."""
    shifted_SS = matrix_SS.clone()
    shifted_SS.diagonal().add_(ridge + INDEFINITE * abs(largest))
    lower_SS, failed = torch.linalg.cholesky_ex(shifted_SS)
    return None if int(failed) else lower_SS


def damping(
    eigenvalues_Q: torch.Tensor, *, num_points: int, ridge: float, size: int, bound: float, batch_rows: int
) -> torch.Tensor:
    """Return (1 - level / lambda_i) / sigma_i of the directions to flatten: all given ones that are above the level.

    sigma_i are eigenvalues of the subsample's K_s, and lambda_i = sigma_i / s + ridge / N those of K / N that they
    estimate. The level is the last of the given ones, which is not flattened, but not so low that batches of
    ``batch_rows`` would stay far from critical: a lower level slows the flattened directions down and gains nothing.

    Args:
        eigenvalues_Q: sigma, descending.
        num_points: s.
        ridge: The lambda of K + lambda I.
        size: N.
        bound: The largest diagonal entry of K + ridge I.
        batch_rows: The largest batch there can be.
    """
    shares_Q = eigenvalues_Q.clamp(min=0) / num_points + ridge / size
    level = max(float(shares_Q[-1]), MIN_LEVEL * bound / batch_rows)
    num_top = int((shares_Q > level).sum())
    return (1 - level / shares_Q[:num_top]) / eigenvalues_Q[:num_top]
