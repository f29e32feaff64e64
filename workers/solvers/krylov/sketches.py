"""Low-rank approximations of a matrix from some of its columns or from one product."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.krylov.preconditioner import BLOCK_ROWS, Preconditioner, orthonormal, solve_factor

INDEFINITE = 1e-6
"""An eigenvalue below minus this share of the largest one is no rounding error."""

PIVOT_ROUNDS = 10
"""In how many blocks randomly pivoted Cholesky reads its columns."""

EXHAUSTED = 1e-10
"""Columns are no longer picked once this share of the trace is left; rounding of float32 ends it earlier."""


@final
@dataclass(frozen=True, slots=True)
class Sketch:
    """What a sketch has found."""

    preconditioner: Preconditioner | None
    """None where there is nothing to sketch."""
    indefinite: bool
    """Whether a projection of K + ridge I has a negative eigenvalue, which proves that it has one itself."""


def draw_sketch(operator: AbstractOperator, kind: str, rank: int, ridge: float, random: np.random.Generator) -> Sketch:
    """Return a sketch of rank ``rank`` at most.

    Args:
        operator: K.
        kind: ``nystrom``: r uniformly random columns. ``rpcholesky``: r columns picked at random in proportion to the
            diagonal of what the columns before them leave, a tenth of them at a time. ``gaussian``: one product with r
            random vectors. Columns of stored tiles cost the tiles that they lie in, which may be all.
        rank: r.
        ridge: With which definiteness is judged.
        random: Picks.
    """
    if rank < 1 or not float(operator.diagonal().double().abs().max()) > 0:
        return Sketch(None, indefinite=False)
    return _KINDS[kind](operator, rank, ridge, random)


def _nystrom(operator: AbstractOperator, rank: int, ridge: float, random: np.random.Generator) -> Sketch:
    picked_R = torch.from_numpy(np.sort(random.permutation(operator.size)[:rank]))
    columns_NR = operator.columns(picked_R)
    core_RR = columns_NR[picked_R].double()
    identity_RR = torch.eye(rank, dtype=torch.float64)
    shift = _shift(core_RR, operator.dtype)
    columns_NR[picked_R] += shift * identity_RR.to(columns_NR.dtype)
    return _finish(columns_NR, core_RR, identity_RR, shift, ridge)


def _gaussian(operator: AbstractOperator, rank: int, ridge: float, random: np.random.Generator) -> Sketch:
    """Sketch with orthonormal vectors, which takes 4 N r bytes more while it lasts."""
    test_NR = torch.from_numpy(random.standard_normal((operator.size, rank))).to(operator.dtype)
    test_NR = torch.linalg.qr(test_NR).Q
    product_NR = operator.matmat(test_NR)
    core_RR, overlap_RR = _inner(test_NR, product_NR), _inner(test_NR, test_NR)
    shift = _shift(core_RR, operator.dtype)
    return _finish(product_NR.add_(test_NR, alpha=shift), core_RR, overlap_RR, shift, ridge)


def _finish(
    product_NR: torch.Tensor, core_RR: torch.Tensor, overlap_RR: torch.Tensor, shift: float, ridge: float
) -> Sketch:
    """Turn (K + shift I) W, W^T K W and W^T W into U and S; the shift makes the factorisation stable."""
    core_RR, overlap_RR = (core_RR + core_RR.T) / 2, (overlap_RR + overlap_RR.T) / 2
    lower_RR, failed = torch.linalg.cholesky_ex(core_RR + shift * overlap_RR)
    if int(failed):
        eigenvalues_R = torch.linalg.eigvalsh(core_RR + ridge * overlap_RR)
        if float(eigenvalues_R[0]) < -INDEFINITE * float(eigenvalues_R.abs().max()):
            return Sketch(None, indefinite=True)
        return Sketch(_from_eigenvectors(product_NR, core_RR + shift * overlap_RR, shift), indefinite=False)
    solve_factor(product_NR, lower_RR)
    return Sketch(orthonormal(product_NR, shift), indefinite=False)


def _from_eigenvectors(product_NR: torch.Tensor, core_RR: torch.Tensor, shift: float) -> Preconditioner | None:
    """Leave out the directions in which the core is not positive, which a Cholesky factorisation cannot."""
    values_R, vectors_RR = torch.linalg.eigh(core_RR)
    kept_R = values_R > shift
    if not kept_R.any():
        return None
    transform_RQ = vectors_RR[:, kept_R] / values_R[kept_R].sqrt()
    return orthonormal((product_NR.double() @ transform_RQ).to(product_NR.dtype), shift)


def _pivoted(operator: AbstractOperator, rank: int, ridge: float, random: np.random.Generator) -> Sketch:
    """Pick columns as in Chen, Epperly, Tropp and Webber, "Randomly pivoted Cholesky" (CPAM, 2025), block by block.

    Two bad picks in a block cost little: what one of them leaves of the other is not picked again.
    """
    left_N = operator.diagonal().double().clamp(min=0.0)
    trace, eps = float(left_N.sum()), torch.finfo(operator.dtype).eps
    factor_NR = torch.zeros(operator.size, rank, dtype=operator.dtype)
    done, width = 0, -(-rank // PIVOT_ROUNDS)
    while done < rank and float(left_N.sum()) > max(EXHAUSTED, eps) * trace:
        weights = left_N.numpy()
        picks = random.choice(operator.size, size=min(width, rank - done), p=weights / weights.sum())
        picked_B = torch.from_numpy(np.unique(picks))
        columns_NB = operator.columns(picked_B)
        columns_NB = columns_NB - factor_NR[:, :done] @ factor_NR[picked_B, :done].T
        core_BB = columns_NB[picked_B].double()
        core_BB = (core_BB + core_BB.T) / 2
        core_BB.diagonal().add_(eps * float(operator.diagonal()[picked_B].double().sum()))
        lower_BB, failed = torch.linalg.cholesky_ex(core_BB)
        if int(failed):
            break
        solve_factor(columns_NB, lower_BB)
        factor_NR[:, done : done + len(picked_B)] = columns_NB
        left_N = (left_N - columns_NB.double().square().sum(dim=1)).clamp(min=0.0)
        left_N[picked_B] = 0.0
        done += len(picked_B)
    return Sketch(orthonormal(factor_NR[:, :done], 0.0) if done else None, indefinite=False)


def _shift(core_RR: torch.Tensor, dtype: torch.dtype) -> float:
    """Return the shift that outweighs the rounding errors of a core in a precision."""
    return torch.finfo(dtype).eps * float(core_RR.diagonal().abs().sum())


def _inner(left_NR: torch.Tensor, right_NR: torch.Tensor) -> torch.Tensor:
    """Return W^T V, float64."""
    total_RR = torch.zeros(left_NR.shape[1], right_NR.shape[1], dtype=torch.float64)
    for left_MR, right_MR in zip(torch.split(left_NR, BLOCK_ROWS), torch.split(right_NR, BLOCK_ROWS), strict=True):
        total_RR.addmm_(left_MR.double().T, right_MR.double())
    return total_RR


_KINDS: dict[str, Callable[[AbstractOperator, int, float, np.random.Generator], Sketch]] = {
    "nystrom": _nystrom,
    "rpcholesky": _pivoted,
    "gaussian": _gaussian,
}
