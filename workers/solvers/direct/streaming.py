"""Gram matrices of features that are read some rows at a time.

Only one triangle is computed, in panels, which halves the work of a matrix product.
"""

from collections.abc import Iterator

import torch

from ntkpipe.workers.operators.parts import DUAL_ROWS, pass_parts
from ntkpipe.workers.operators.rectangle import AbstractRectangle

PANEL = 512
"""Columns that are multiplied together. Wider panels compute more of the other triangle."""

LONGEST_SUM = 4096
"""Products of float32 entries that are added up in float32; sums of those are added up in float64."""

REFINE_ROWS = 256
"""Rows that are converted to float64 at a time; more of them leave the processor's cache."""


def row_blocks(
    features: AbstractRectangle, part: int, num_parts: int, *, longest: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the rows of a part, read in whole blocks, in pieces of at most ``longest`` rows."""
    num_blocks = -(-features.shape[0] // features.block_rows)
    group = -(-num_blocks // num_parts) * features.block_rows
    stop = min((part + 1) * group, features.shape[0])
    step = max(1, longest // features.block_rows) * features.block_rows
    for first in range(part * group, stop, step):
        rows_MK = features.rows(first, min(first + step, stop))
        for offset in range(0, len(rows_MK), longest):
            piece_MK = rows_MK[offset : offset + longest]
            yield slice(first + offset, first + offset + len(piece_MK)), piece_MK


def num_row_parts(features: AbstractRectangle) -> int:
    """Return into how many parts the rows are cut; a function of the shapes only."""
    return pass_parts(-(-features.shape[0] // features.block_rows))


def primal_part(features: AbstractRectangle, targets_NT: torch.Tensor, part: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the (K, K + T) summand [Phi_p^T Phi_p | Phi_p^T y_p], float64; the triangle above the diagonal is not filled.

    N K^2 FLOPs over all parts. Products are in the given precision, sums over more than 4096 rows in float64: the
    relative error of float32 products is a few 1e-7 at most.
    """
    num_features = features.shape[1]
    total = torch.zeros(num_features, num_features + targets_NT.shape[1], dtype=torch.float64)
    for span, stored_MK in row_blocks(features, part, num_row_parts(features), longest=LONGEST_SUM):
        rows_MK = stored_MK.to(dtype)
        for left in range(0, num_features, PANEL):
            right = min(left + PANEL, num_features)
            total[left:right, :right] += rows_MK[:, left:right].T @ rows_MK[:, :right]
        total[:, num_features:] += rows_MK.T @ targets_NT[span].to(dtype)
    return total


def dual_part(features: AbstractRectangle, part: int, dtype: torch.dtype) -> torch.Tensor:
    """Return some rows of Phi Phi^T as an (N, N) summand, float64, of which the upper triangle is not filled."""
    size, num_features = features.shape
    total = torch.zeros(size, size, dtype=torch.float64)
    top, bottom = part * DUAL_ROWS, min((part + 1) * DUAL_ROWS, size)
    left_MK = features.rows(top, bottom).to(dtype)
    # Rows before the part are read again; those of the part are there.
    for first in (*range(0, top, PANEL), *range(top, bottom, PANEL)):
        own = first >= top
        last = min(first + PANEL, bottom if own else top)
        right_MK = left_MK[first - top : last - top] if own else features.rows(first, last).to(dtype)
        begin = first - top if own else 0
        for start in range(0, num_features, LONGEST_SUM):
            columns = slice(start, start + LONGEST_SUM)
            total[top + begin : bottom, first:last] += left_MK[begin:, columns] @ right_MK[:, columns].T
    return total


def num_dual_parts(features: AbstractRectangle) -> int:
    """Return into how many parts the rows are cut on the dual side."""
    return -(-features.shape[0] // DUAL_ROWS)


def mirrored(lower_SS: torch.Tensor) -> torch.Tensor:
    """Return the symmetric matrix of a lower triangle; it is overwritten."""
    upper_SS = lower_SS.tril(-1).T
    return lower_SS.tril_().add_(upper_SS)


def refinement_part(
    features: AbstractRectangle,
    rhs_NT: torch.Tensor,
    weights_KT: torch.Tensor,
    duals_KT: torch.Tensor,
    ridge: float,
    part: int,
) -> torch.Tensor:
    """Return a summand of Phi^T alpha, for least squares of Phi^T (y - Phi w), and of alpha, stacked; float64.

    alpha is Phi z for least squares, for which z is given, and else (y - Phi w) / ridge. O(N K T) over all parts, the
    features are read once.
    """
    size, num_features = features.shape
    least_squares = duals_KT.numel() > 0
    sums = 2 if least_squares else 1
    total = rhs_NT.new_zeros(sums * num_features + size, rhs_NT.shape[1])
    alpha_NT = total[sums * num_features :]
    for span, stored_MK in row_blocks(features, part, num_row_parts(features), longest=REFINE_ROWS):
        rows_MK = stored_MK.double()
        errors_MT = rhs_NT[span] - rows_MK @ weights_KT
        if least_squares:
            total[num_features : 2 * num_features].addmm_(rows_MK.T, errors_MT)
        alpha_NT[span] = rows_MK @ duals_KT if least_squares else errors_MT / ridge
        total[:num_features].addmm_(rows_MK.T, alpha_NT[span])
    return total
