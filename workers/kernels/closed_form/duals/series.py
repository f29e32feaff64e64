"""Any other activation, by its expansion into Hermite polynomials."""

import functools
import math
from collections.abc import Callable
from typing import final

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.kernels.closed_form.duals.base import AbstractDual, LayerMoments, PairMoments, pair_moments

HALF_RANGE = 13.0
"""The normal density at 13 standard deviations is 1e-37: what is outside does not count."""

PANEL = 0.5
"""Width of the panels of the quadrature. Zero is a boundary of panels, so that kinks there do no harm."""

PANEL_NODES = (24, 16)
"""Of the rule, and of one that is only used to estimate the rule's error."""

TERMS = (64, 128, 256, 512, 1024)
"""Numbers of terms that are tried."""

RESOLVED = 1e-14
"""What terms that are left out may contribute to a variance, relative to it, before more of them are tried."""

NEGLIGIBLE = 3e-9
"""Coefficients below this share of the root of the variance contribute less than 1e-17 of it, and are left out."""

CHUNK_ENTRIES = 2**20
"""Values of the activation that are computed at a time, 8 MiB."""

Activation = Callable[[torch.Tensor], torch.Tensor]


@final
class SeriesDual(AbstractDual):
    """Any s by Mehler's formula.

    With h_k(a) = E[s(sqrt(a) z) He_k(z)] / sqrt(k!) and the correlation u = cos t,

        D = sum over k of h_k(a) h_k(c) u^k,

    and D' likewise from the coefficients of s', which autograd gives. The coefficients of each sample come from one
    dense Gauss-Legendre rule, once; a pair then costs two operations for each term instead of a quadrature in the
    plane. Smooth activations of moderate variance need 20 to 100 terms for all digits, kinks make the coefficients fall
    like a power of k only. But sum of h_k^2 is E[s^2], and with alternating signs E[s(u) s(-u)], so that what K terms
    leave out is known for even and for odd k. It is put into two more terms, of orders 2 K and 2 K + 1: then samples
    that are equal or opposite have their exact values, and others an error of at most |u|^K times what is left out.
    O(K S) memory.
    """

    def __init__(self, function: Activation, name: str, tolerance: float) -> None:
        self._function, self._name, self._tolerance = function, name, tolerance

    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return the coefficients of s, and below them those of s', that do not vanish for all samples.

        Raises:
            ConfigError: The activation is not one, or the remainder of its series exceeds the tolerance.
        """
        if len(variances_S) == 0:
            empty_S = variances_S.clone()
            return LayerMoments(empty_S, empty_S if slopes else None, empty_S.unsqueeze(0), ((),) * 2)
        different_U, sample_S = torch.unique(variances_S, return_inverse=True)
        extremes_E = torch.stack([different_U[0], different_U[-1]])
        for num_terms in TERMS:
            _, lost = self._expand(extremes_E, num_terms, slopes, PANEL_NODES[0])
            if lost <= RESOLVED:
                break
        expansions, lost = self._expand(different_U, num_terms, slopes, PANEL_NODES[0])
        self._check(lost, self._quadrature_error(extremes_E, slopes), float(extremes_E[-1]))
        moments = [moments_U[sample_S] for _, moments_U in expansions]
        terms = [(coefficients_KU != 0).any(1).nonzero().flatten() for coefficients_KU, _ in expansions]
        kept = [
            coefficients_KU[kept_T][:, sample_S] for (coefficients_KU, _), kept_T in zip(expansions, terms, strict=True)
        ]
        all_orders = (*range(num_terms), 2 * num_terms, 2 * num_terms + 1)
        orders = tuple(tuple(all_orders[term] for term in kept_T.tolist()) for kept_T in terms)
        return LayerMoments(moments[0], moments[1] if slopes else None, torch.cat(kept), orders)

    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Sum the series: two operations per term and pair."""
        cosines_RC = torch.cos(angles_RC)
        powers = {1: cosines_RC, 2: cosines_RC.square()}
        sums, start = [], 0
        for orders in rows.orders:
            series = slice(start, start + len(orders))
            sums.append(_sum_series(powers, orders, rows.features_FS[series], columns.features_FS[series]))
            start = series.stop
        return pair_moments(sums[0], None if rows.slope_S is None else sums[1], rows, columns)

    def _expand(
        self, variances_U: torch.Tensor, num_terms: int, slopes: bool, panel_nodes: int
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], float]:
        """Return (coefficients, second moments) of s, and of s', and the largest share that terms leave out."""
        nodes_Q, weights_Q, basis_QK = _rule(num_terms, panel_nodes)
        nodes_Q, weights_Q, basis_QK = (part.to(variances_U.device) for part in (nodes_Q, weights_Q, basis_QK))
        parts: list[list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = [[], []]
        for part_U in variances_U.split(max(1, CHUNK_ENTRIES // len(nodes_Q))):
            for values_UQ, found in zip(self._values(part_U.sqrt().outer(nodes_Q), slopes), parts, strict=False):
                # Nodes are symmetric: reversed, they are the opposite inputs.
                opposites_U = (values_UQ * values_UQ.flip(1)) @ weights_Q
                found.append(((values_UQ @ basis_QK).T, values_UQ.square() @ weights_Q, opposites_U))
        expansions, lost = [], 0.0
        for found in parts[: 1 + slopes]:
            coefficients_KU, moments_U, opposites_U = (torch.cat(tensors, -1) for tensors in zip(*found, strict=True))
            coefficients_KU, lost_U = _completed(coefficients_KU, moments_U, opposites_U)
            lost = max(lost, float((lost_U / moments_U.where(moments_U > 0, 1.0)).max()))
            expansions.append((coefficients_KU, moments_U))
        return expansions, lost

    def _values(self, inputs_UQ: torch.Tensor, slopes: bool) -> tuple[torch.Tensor, ...]:
        """Return s, and s' if slopes are asked for.

        Raises:
            ConfigError: The function does not work entry by entry on float64, or is not finite.
        """
        with torch.enable_grad():
            inputs_UQ = inputs_UQ.detach().requires_grad_(slopes)
            values_UQ = self._function(inputs_UQ)
            if not isinstance(values_UQ, torch.Tensor) or values_UQ.shape != inputs_UQ.shape:
                raise ConfigError(
                    f"activation {self._name} does not return a tensor of the shape of its input, {tuple(inputs_UQ.shape)}; "
                    "it must work entry by entry."
                )
            values_UQ = values_UQ.to(torch.float64)
            found = [values_UQ.detach()]
            if slopes and values_UQ.requires_grad:
                found += torch.autograd.grad(values_UQ.sum(), inputs_UQ)
            elif slopes:
                raise ConfigError(f"activation {self._name} cannot be differentiated by autograd; use kind nngp_limit.")
        if not all(bool(torch.isfinite(values).all()) for values in found):
            raise ConfigError(
                f"activation {self._name} or its derivative is not finite within 13 standard deviations, up to "
                f"{float(inputs_UQ.detach().abs().max()):.3g}; reduce weight_variance, or bound the activation."
            )
        return tuple(found)

    def _quadrature_error(self, variances_E: torch.Tensor, slopes: bool) -> float:
        """Return how much second moments differ between the two rules, relative to them: an estimate from above."""
        rules = [self._expand(variances_E, TERMS[0], slopes, num_nodes)[0] for num_nodes in PANEL_NODES]
        errors = [
            ((fine_E - coarse_E).abs() / fine_E.where(fine_E > 0, 1.0)).max()
            for (_, fine_E), (_, coarse_E) in zip(*rules, strict=True)
        ]
        return float(torch.stack(errors).max())

    def _check(self, lost: float, error: float, variance: float) -> None:
        if max(lost, error) > self._tolerance:
            raise ConfigError(
                f"the Hermite series of activation {self._name} at variance {variance:.3g} leaves out "
                f"{max(lost, error):.1e} of a layer's variance after {TERMS[-1]} terms, more than tolerance = "
                f"{self._tolerance:.1e}. Kinks or large variances do this: reduce weight_variance, use an activation "
                "with a closed form, or raise tolerance if this error is acceptable."
            )


def _completed(
    coefficients_KU: torch.Tensor, moments_U: torch.Tensor, opposites_U: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return coefficients (K + 2, U) of which the last two stand for all further ones, and what these contribute (U,)."""
    even_U = (moments_U + opposites_U) / 2 - coefficients_KU[0::2].square().sum(0)
    odd_U = (moments_U - opposites_U) / 2 - coefficients_KU[1::2].square().sum(0)
    further_2U = torch.stack([even_U, odd_U])
    further_2U = further_2U.where(further_2U > RESOLVED * moments_U, 0.0)
    small_KU = coefficients_KU.abs() <= NEGLIGIBLE * moments_U.sqrt()
    kept_KU = coefficients_KU.masked_fill(small_KU.all(1, keepdim=True), 0.0)
    return torch.cat([kept_KU, further_2U.sqrt()]), further_2U.sum(0)


def _sum_series(
    powers: dict[int, torch.Tensor], orders: tuple[int, ...], rows_KR: torch.Tensor, columns_KC: torch.Tensor
) -> torch.Tensor:
    """Return sum over k of rows_k columns_k u^k by Horner's scheme, from some powers of u."""
    total_RC = torch.zeros_like(powers[1])
    for term in reversed(range(len(orders))):
        total_RC.addr_(rows_KR[term], columns_KC[term])
        steps = orders[term] - (orders[term - 1] if term else 0)
        if steps:
            total_RC.mul_(powers[steps] if steps in powers else powers[1].pow(steps))
    return total_RC


@functools.lru_cache(maxsize=8)
def _rule(num_terms: int, panel_nodes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return nodes, weights times the normal density, and (Q, K) weights times density times He_k / sqrt(k!)."""
    unit_nodes, unit_weights = np.polynomial.legendre.leggauss(panel_nodes)
    starts_P = np.arange(-HALF_RANGE, HALF_RANGE, PANEL)
    nodes = (starts_P[:, None] + (unit_nodes + 1) * (PANEL / 2)).ravel()
    weights = np.tile(unit_weights * (PANEL / 2), len(starts_P))
    # Half of the density goes with the polynomials, which alone would overflow.
    half_density = np.exp(-(nodes**2) / 4) / (2 * math.pi) ** 0.25
    basis = np.empty((len(nodes), num_terms))
    basis[:, 0], basis[:, 1] = half_density, nodes * half_density
    for k in range(1, num_terms - 1):
        basis[:, k + 1] = (nodes * basis[:, k] - math.sqrt(k) * basis[:, k - 1]) / math.sqrt(k + 1)
    scale = half_density * weights
    return torch.from_numpy(nodes), torch.from_numpy(scale * half_density), torch.from_numpy(basis * scale[:, None])
