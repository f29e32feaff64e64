"""Solving d^2 K / ds dt = g K for many pairs of paths at once, g constant in every cell of a grid."""

import math

import torch

from ntkpipe.configs.errors import NumericalError

MAX_TERMS = 96
"""Of the power series; what needs more than these has kernels beyond double precision, or lost in cancellation."""

NEGLIGIBLE = 1e-13
"""The last two terms that are kept, as a share of a pair's values at the time; what is dropped is a thousand times smaller."""


def solve_scheme(cells_IJB: torch.Tensor, dyadic_order: int) -> torch.Tensor:
    """Return K in the far corner, K = 1 on both axes, by the second-order scheme of Salvi et al., 2021.

    Cells of an antidiagonal do not depend on each other: they, for all pairs, are one vector operation.

    Args:
        cells_IJB: g integrated over each cell of the coarse grid, for B pairs of paths.
        dyadic_order: o; each cell is cut into 2^o x 2^o equal ones.

    Returns:
        (B,), 1 on an empty grid.
    """
    num_i, num_j, num_pairs = cells_IJB.shape
    if num_i == 0 or num_j == 0:
        return cells_IJB.new_ones(num_pairs)
    flat_CB = cells_IJB.reshape(-1, num_pairs) / 4**dyadic_order
    fine_i, fine_j = num_i << dyadic_order, num_j << dyadic_order
    # Antidiagonal s holds K at the nodes (i, s - i), i counted from 0; entries outside the grid are never read.
    before = flat_CB.new_ones(fine_i + 1, num_pairs)
    last, new = torch.ones_like(before), torch.ones_like(before)
    for s in range(2, fine_i + fine_j + 1):
        low, high = max(1, s - fine_j), min(fine_i, s - 1)
        i = torch.arange(low - 1, high, device=cells_IJB.device)
        g = flat_CB.index_select(0, (i >> dyadic_order) * num_j + ((s - 2 - i) >> dyadic_order))
        twelfth = g.square().div_(12)
        sides = torch.add(last[low - 1 : high], last[low : high + 1])
        sides.mul_(g.mul_(0.5).add_(twelfth).add_(1))
        torch.sub(sides, before[low - 1 : high].mul(twelfth.neg_().add_(1)), out=new[low : high + 1])
        if s <= fine_j:
            new[0] = 1
        if s <= fine_i:
            new[s] = 1
        before, last, new = last, new, before
    return last[fine_i].clone()


def solve_series(cells_IJB: torch.Tensor) -> torch.Tensor:
    """Return K in the far corner, K = 1 on both axes, by a power series in every cell, exact up to rounding.

    In a cell of constant g, K = sum c_jk s^j t^k with j k c_jk = g c_{j-1,k-1}, so that all coefficients follow from those
    of the lower edge, c_j0, and of the left edge, c_0k. With a_j = j! c_j0 and b_k = k! c_0k the upper edge has

        a'_j = sum_{k <= j} a_{j-k} g^k / k! + g^j / j! sum_{m >= 1} b_m j! / (m + j)!,

    and the right edge the same with a and b exchanged. Cells of an antidiagonal, for all pairs, are one vector operation.
    Terms are added until the last ones are below rounding, about a dozen where steps and paths are no longer than one.
    Rounding errors are relative to the largest K anywhere on the grid, which paths of long steps leave far behind.
    Memory is some terms x (I + 1) x B numbers.

    Args:
        cells_IJB: g integrated over each cell, for B pairs of paths.

    Returns:
        (B,), 1 on an empty grid.

    Raises:
        NumericalError: The steps of the paths are too long for the series.
    """
    if cells_IJB.numel() == 0:
        return cells_IJB.new_ones(cells_IJB.shape[2])
    # Along a step K changes as if g were what the other path adds up to; exactly so where K hardly changes.
    reach = max(float(cells_IJB.cumsum(dim).abs().amax()) for dim in (0, 1))
    num_terms = _first_guess(reach)
    while num_terms <= MAX_TERMS:
        values_B, last_term = _solve_with_terms(cells_IJB, num_terms)
        if last_term <= NEGLIGIBLE:
            return values_B
        num_terms += max(2, num_terms // 4)
    raise NumericalError(
        f"a path of the signature kernel is too long for double precision: a step of it and a whole path add up to "
        f"{reach:.3g}. Give the kernel a smaller scale, or normalise the paths."
    )


def _first_guess(reach: float) -> int:
    """Return for which P the order r^P / (P!)^2 of the last term is negligible."""
    for num_terms in range(4, MAX_TERMS + 1):
        if num_terms * math.log(max(reach, 1e-300)) - 2 * math.lgamma(num_terms + 1) < math.log(NEGLIGIBLE):
            return num_terms + 2
    return MAX_TERMS + 1


def _solve_with_terms(cells_IJB: torch.Tensor, num_terms: int) -> tuple[torch.Tensor, float]:
    """Return K in the far corner, and the largest of the last two terms of any cell.

    Terms are relative to the largest K of the pair on the antidiagonal, if that exceeds 1: what is dropped there grows
    no faster than K does.
    """
    num_i, num_j, num_pairs = cells_IJB.shape
    flat_CB = cells_IJB.reshape(-1, num_pairs)
    orders_P = torch.arange(num_terms, dtype=cells_IJB.dtype, device=cells_IJB.device)
    factorials_P = torch.exp(torch.lgamma(orders_P + 1))
    hankel_PP = factorials_P[:, None] / torch.exp(torch.lgamma(orders_P[:, None] + orders_P + 1))
    hankel_PP[:, 0] = 0
    # At the index i are the edges of the cell (i, s - i) of the antidiagonal s.
    lower_PIB = flat_CB.new_zeros(num_terms, num_i, num_pairs)
    lower_PIB[0] = 1
    left_PIB, right = lower_PIB.clone(), lower_PIB
    largest = 0.0
    for s in range(num_i + num_j - 1):
        low, high = max(0, s - num_j + 1), min(num_i, s + 1)
        i = torch.arange(low, high, device=cells_IJB.device)
        g_IB = flat_CB.index_select(0, i * num_j + (s - i))
        powers = [torch.ones_like(g_IB)]
        for k in range(1, num_terms):
            powers.append((powers[-1] * g_IB).div_(k))
        lower, left = lower_PIB[:, low:high].clone(), left_PIB[:, low:high]
        # Both edges start at one corner. Were its values to differ by rounding, the difference would grow from cell to
        # cell along the diagonal, as no solution does.
        left[0] = lower[0]
        lower_PIB[:, low:high] = _far_edge(lower, left, powers, hankel_PP)
        right = _far_edge(left, lower, powers, hankel_PP)
        last_terms_B = _last_terms(right, factorials_P).maximum(_last_terms(lower_PIB[:, low:high], factorials_P))
        largest = max(largest, float((last_terms_B / lower_PIB[0, low:high].abs().amax(0).clamp_min(1)).amax()))
        # What leaves the cell (i, j) to the right enters (i + 1, j); the last column has no neighbour.
        entered = min(high + 1, num_i)
        left_PIB[:, low + 1 : entered] = right[:, : entered - low - 1]
    return (right[:, -1] / factorials_P[:, None]).sum(0), largest


def _last_terms(edge_PIB: torch.Tensor, factorials_P: torch.Tensor) -> torch.Tensor:
    """Return the larger of the last two terms of any of a pair's edges, (B,)."""
    return (edge_PIB[-2:].abs().amax(1) / factorials_P[-2:, None]).amax(0)


def _far_edge(
    near_PIB: torch.Tensor, side_PIB: torch.Tensor, powers: list[torch.Tensor], hankel_PP: torch.Tensor
) -> torch.Tensor:
    """Return the coefficients of the edge opposite to ``near``, given g^k / k!."""
    far_PIB = torch.mm(hankel_PP, side_PIB.flatten(1)).reshape(near_PIB.shape)
    for k, power_IB in enumerate(powers):
        far_PIB[k].mul_(power_IB)
    for k, power_IB in enumerate(powers):
        far_PIB[k:].addcmul_(near_PIB[: len(powers) - k], power_IB)
    return far_PIB
