"""Eigenvalues of a symmetric matrix, and how much of the targets its leading eigenvectors explain."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


def decompose(matrix_NN: Array, targets_NT: Array | None) -> tuple[Doubles, Doubles | None]:
    """Return eigenvalues, largest first, and the label energy of the first q eigenvectors for every q.

    The energy is sum_{i <= q} |Y' v_i|^2 / |Y|^2 for the targets Y minus their column means: a constant vector explains
    nothing. The matrix is made exactly symmetric. O(N^3) in float64, with about 24 N^2 bytes.

    Args:
        matrix_NN: Symmetric but for rounding.
        targets_NT: One-hot classes or real targets; None without labels.

    Returns:
        (N,) and (N,); None in place of the energy where there are no targets, or all are equal.
    """
    symmetric_NN = ((matrix_NN + matrix_NN.T) / 2).astype(np.float64)
    if targets_NT is None:
        alone_N = np.linalg.eigvalsh(symmetric_NN).astype(np.float64)
        return alone_N[::-1].copy(), None
    eigenvalues_N, vectors_NN = np.linalg.eigh(symmetric_NN)
    centred_NT = targets_NT.astype(np.float64)
    centred_NT -= centred_NT.mean(axis=0)
    total = float(np.square(centred_NT).sum())
    # Means are rounded, so that equal targets may leave a little.
    rounding = np.finfo(np.float64).eps * float(np.abs(targets_NT).max(initial=0.0))
    if total <= centred_NT.size * (4 * rounding) ** 2:
        return eigenvalues_N[::-1].copy(), None
    energies_N = np.square(vectors_NN[:, ::-1].T @ centred_NT).sum(axis=1)
    return eigenvalues_N[::-1].copy(), np.cumsum(energies_N) / total


def one_hot(classes_N: Array) -> Doubles:
    """Return (N, T) one-hot targets, a column for every class that occurs."""
    numbers, indices = np.unique(classes_N, return_inverse=True)
    columns_NT: Doubles = np.eye(len(numbers))[indices]
    return columns_NT
