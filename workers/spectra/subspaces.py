"""Leading eigenvectors of an operator, each method as a subspace and its products.

Every method returns approximate eigenvectors with orthonormal columns, largest eigenvalues first; what they are worth
is for :mod:`ntkpipe.workers.spectra.eigenpairs` to find out.
"""

from collections.abc import Callable

import numpy as np
import torch

from ntkpipe.workers.operators.base import AbstractOperator

BLOCK = 16
"""Columns that a pass multiplies in a Lanczos iteration; more of them need fewer passes and a larger basis."""

OVERSAMPLING = 10

POWERS = 2
"""Products before the projection of a randomised sketch."""

DEPENDENT = 1e-10
"""A direction of which a smaller share than this is new adds nothing but rounding to a basis."""


def orthonormal(new_NB: torch.Tensor, basis_NQ: torch.Tensor) -> torch.Tensor:
    """Return an orthonormal basis of what some columns add to an orthonormal basis; maybe of fewer columns."""
    norms_B = torch.linalg.vector_norm(new_NB, dim=0)
    new_NB = new_NB[:, norms_B > 0] / norms_B[norms_B > 0]
    for _ in range(2):
        new_NB = new_NB - basis_NQ @ (basis_NQ.T @ new_NB)
        if not new_NB.shape[1]:
            return new_NB
        left_NB, sizes_B, _ = torch.linalg.svd(new_NB, full_matrices=False)
        # After the first round columns are of unit length, so that only rounding is dropped in the second one.
        new_NB = left_NB[:, sizes_B > DEPENDENT]
    return new_NB


def gaussian(size: int, columns: int, random: np.random.Generator) -> torch.Tensor:
    """Return (N, columns) independent standard normal numbers, float64."""
    return torch.from_numpy(random.standard_normal((size, columns)))


def ritz(basis_NQ: torch.Tensor, products_NQ: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ``num`` largest Ritz values, descending, and the combinations of the basis that have them."""
    projected_QQ = basis_NQ.T @ products_NQ
    values_Q, vectors_QQ = torch.linalg.eigh((projected_QQ + projected_QQ.T) / 2)
    return values_Q.flip(0)[:num], vectors_QQ.flip(1)[:, :num]


def lanczos(
    operator: AbstractOperator, num: int, tolerance: float, max_passes: int, random: np.random.Generator
) -> torch.Tensor:
    """Block Lanczos with full orthogonalisation and thick restarts; memory O(N (num + block)).

    The basis grows by the residuals of Ritz pairs that have not converged; when it is full, it is replaced by the
    leading Ritz vectors (Wu, Simon: "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J.
    Matrix Anal. 2000).
    """
    size = operator.size
    block = min(BLOCK, max(num, 2), size)
    capacity = min(size, 2 * num + 4 * block)
    basis_NQ = products_NQ = torch.zeros(size, 0, dtype=torch.float64)
    fresh_NB = gaussian(size, block, random)
    for _ in range(max_passes):
        added_NB = orthonormal(fresh_NB, basis_NQ)[:, : size - basis_NQ.shape[1]]
        if not added_NB.shape[1]:
            added_NB = orthonormal(gaussian(size, block, random), basis_NQ)[:, : size - basis_NQ.shape[1]]
        basis_NQ = torch.cat([basis_NQ, added_NB], dim=1)
        products_NQ = torch.cat([products_NQ, operator.matmat(added_NB)], dim=1)
        values_Q, mixing_QQ = ritz(basis_NQ, products_NQ, num)
        residuals_NQ = products_NQ @ mixing_QQ - (basis_NQ @ mixing_QQ) * values_Q
        norms_Q = torch.linalg.vector_norm(residuals_NQ, dim=0)
        open_Q = norms_Q > tolerance * values_Q.abs().max()
        if basis_NQ.shape[1] == size or (len(values_Q) == num and not open_Q.any()):
            break
        fresh_NB = residuals_NQ[:, open_Q][:, :block]
        if basis_NQ.shape[1] + block > capacity:
            _, kept_QQ = ritz(basis_NQ, products_NQ, min(num + block, basis_NQ.shape[1]))
            basis_NQ, products_NQ = basis_NQ @ kept_QQ, products_NQ @ kept_QQ
    _, mixing_QQ = ritz(basis_NQ, products_NQ, num)
    return basis_NQ @ mixing_QQ


def lobpcg(
    operator: AbstractOperator, num: int, tolerance: float, max_passes: int, random: np.random.Generator
) -> torch.Tensor:
    """Locally optimal block conjugate gradients without a preconditioner; memory O(N num), a pass multiplies 3 num.

    Knyazev: "Toward the optimal preconditioned eigensolver" (SIAM J. Sci. Comput. 2001).
    """
    size = operator.size
    leading_NQ = orthonormal(gaussian(size, num, random), torch.zeros(size, 0, dtype=torch.float64))
    others_NQ = leading_NQ[:, :0]
    for _ in range(max_passes):
        added_NQ = orthonormal(others_NQ, leading_NQ)[:, : size - leading_NQ.shape[1]]
        basis_NQ = torch.cat([leading_NQ, added_NQ], dim=1)
        products_NQ = operator.matmat(basis_NQ)
        values_Q, mixing_QQ = ritz(basis_NQ, products_NQ, num)
        directions_NQ = added_NQ @ mixing_QQ[leading_NQ.shape[1] :]
        leading_NQ, moved_NQ = basis_NQ @ mixing_QQ, products_NQ @ mixing_QQ
        residuals_NQ = moved_NQ - leading_NQ * values_Q
        norms_Q = torch.linalg.vector_norm(residuals_NQ, dim=0)
        if not (norms_Q > tolerance * values_Q.abs().max()).any():
            break
        others_NQ = torch.cat([residuals_NQ, directions_NQ], dim=1)
    return leading_NQ


def randomised(operator: AbstractOperator, num: int, random: np.random.Generator) -> torch.Tensor:
    """A Gaussian sketch after two products, projected; three passes.

    Halko, Martinsson, Tropp: "Finding structure with randomness" (SIAM Review 2011).
    """
    columns = min(operator.size, num + OVERSAMPLING)
    sketch_NQ = gaussian(operator.size, columns, random)
    none_N0 = sketch_NQ[:, :0]
    for _ in range(POWERS):
        sketch_NQ = orthonormal(operator.matmat(orthonormal(sketch_NQ, none_N0)), none_N0)
        missing = columns - sketch_NQ.shape[1]
        if missing:  # The matrix has a lower rank; eigenvectors of zero are as good as any others.
            extra_NQ = orthonormal(gaussian(operator.size, missing, random), sketch_NQ)
            sketch_NQ = torch.cat([sketch_NQ, extra_NQ], dim=1)
    _, mixing_QQ = ritz(sketch_NQ, operator.matmat(sketch_NQ), num)
    return sketch_NQ @ mixing_QQ


def nystrom(operator: AbstractOperator, num: int, num_columns: int, random: np.random.Generator) -> torch.Tensor:
    """The range of some random columns of a positive semidefinite matrix; reads num_columns / N of it."""
    positions_S = torch.from_numpy(np.sort(random.permutation(operator.size)[:num_columns]))
    columns_NS = operator.columns(positions_S).double()
    values_S, vectors_SS = torch.linalg.eigh(operator.submatrix(positions_S))
    kept_S = values_S > len(values_S) * torch.finfo(torch.float64).eps * values_S.abs().max()
    features_NQ = columns_NS @ (vectors_SS[:, kept_S] * values_S[kept_S].rsqrt())
    basis_NQ, triangle_QQ = torch.linalg.qr(features_NQ)
    _, mixing_QQ = torch.linalg.eigh(triangle_QQ @ triangle_QQ.T)
    leading_NQ: torch.Tensor = basis_NQ @ mixing_QQ.flip(1)[:, :num]
    return leading_NQ


Iteration = Callable[[AbstractOperator, int, float, int, np.random.Generator], torch.Tensor]
ITERATIONS: dict[str, Iteration] = {"lanczos": lanczos, "lobpcg": lobpcg}
"""Methods that go on until a tolerance is met or passes are spent."""
