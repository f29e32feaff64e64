"""Smooth activations whose expectations have a closed form: erf, GELU, sine and cosine."""

import math
from typing import final

import torch

from ntkpipe.workers.kernels.closed_form.duals.base import AbstractDual, LayerMoments, PairMoments, pair_moments


def erf_moments(
    a: torch.Tensor, c: torch.Tensor, b: torch.Tensor, determinant: torch.Tensor, *, slopes: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return D = E[s(u) s(v)] and, if asked for, D' = E[s'(u) s'(v)] of s = erf, entry by entry (Williams, 1997).

    With R^2 = (1 + 2 a)(1 + 2 c) - 4 b^2,

        D = (2 / pi) arctan(2 b / R),  D' = (4 / pi) / R.

    Args:
        a: Variances of u; all four are broadcast, and ``determinant`` has the shape of the result.
        c: Variances of v.
        b: Covariances.
        determinant: a c - b^2 without cancellation: R^2 is 1 + 2 a + 2 c + 4 (a c - b^2).
        slopes: Whether D' is needed.
    """
    root = torch.mul(determinant, 4).add_(1 + 2 * a).add_(2 * c).sqrt_()
    value = torch.atan2(2 * b, root).mul_(2 / math.pi)
    return value, root.reciprocal_().mul_(4 / math.pi) if slopes else None


def gelu_moments(
    a: torch.Tensor, c: torch.Tensor, b: torch.Tensor, determinant: torch.Tensor, *, slopes: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return D = E[s(u) s(v)] and, if asked for, D' = E[s'(u) s'(v)] of s(z) = z Phi(z), entry by entry.

    Phi is the normal distribution function. With p = (1 + a)(1 + c), R^2 = p - b^2 and h = arctan(b / R),

        D = ((b^2 + a c R^2) / (p R) + b h) / (2 pi) + b / 4,
        D' = ((1 / R^2 + (1 - a c) / p + 1) b / R + h) / (2 pi) + 1 / 4.

    Tsuchida, Pearce, van der Heide, Roosta, Gallagher, 2021.

    Args:
        a: Variances of u; all four are broadcast, and ``determinant`` has the shape of the result.
        c: Variances of v.
        b: Covariances.
        determinant: a c - b^2 without cancellation: R^2 is 1 + a + c + (a c - b^2).
        slopes: Whether D' is needed.
    """
    squared = (determinant + (1 + a)).add_(c)
    inverse, product = 1 / ((1 + a) * (1 + c)), a * c
    root = squared.sqrt()
    ratio = b / root
    turn = torch.atan2(b, root)
    # b^2 = p - R^2 splits the fraction: (b^2 + a c R^2) / (p R) = b / p * (b / R) + a c R / p.
    value = (ratio * b).addcmul_(product, root).mul_(inverse).addcmul_(b, turn).div_(2 * math.pi).add_(b, alpha=0.25)
    if not slopes:
        return value, None
    slope = squared.reciprocal_().add_((1 - product) * inverse + 1).mul_(ratio).add_(turn).div_(2 * math.pi).add_(0.25)
    return value, slope


@final
class ErfDual(AbstractDual):
    """s = erf: :func:`erf_moments` with a c - b^2 = a c sin^2 t."""

    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return the expectations at angle zero."""
        value_S, slope_S = erf_moments(*_at_angle_zero(variances_S), slopes=slopes)
        return LayerMoments(value_S, slope_S, variances_S.unsqueeze(0))

    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Return the expectations."""
        value_RC, slope_RC = erf_moments(*_at_angles(angles_RC, rows, columns), slopes=rows.slope_S is not None)
        return pair_moments(value_RC, slope_RC, rows, columns)


@final
class GeluDual(AbstractDual):
    """s(z) = z Phi(z): :func:`gelu_moments` with a c - b^2 = a c sin^2 t."""

    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return the expectations at angle zero."""
        value_S, slope_S = gelu_moments(*_at_angle_zero(variances_S), slopes=slopes)
        return LayerMoments(value_S, slope_S, variances_S.unsqueeze(0))

    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Return the expectations."""
        value_RC, slope_RC = gelu_moments(*_at_angles(angles_RC, rows, columns), slopes=rows.slope_S is not None)
        return pair_moments(value_RC, slope_RC, rows, columns)


def _at_angle_zero(variances_S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a, c, b and a c - b^2 of samples and themselves."""
    return variances_S, variances_S, variances_S, torch.zeros_like(variances_S)


def _at_angles(
    angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a, c, b and a c - b^2 of pairs, whose variances are their features."""
    a_R1, c_1C = rows.features_FS.T, columns.features_FS
    b_RC = torch.cos(angles_RC).mul_(a_R1.sqrt()).mul_(c_1C.sqrt())
    return a_R1, c_1C, b_RC, torch.sin(angles_RC).square_().mul_(a_R1).mul_(c_1C)


@final
class TrigonometricDual(AbstractDual):
    """s(z) = sin(f z) or cos(f z).

    E[cos cos] and E[sin sin] = (exp(-f^2 (a + c - 2 b) / 2) +- exp(-f^2 (a + c + 2 b) / 2)) / 2, and the derivative of the
    one is f times the other up to its sign. The exponents are computed from the angle, without cancellation, and the
    difference for sines through expm1. Sitzmann, Martel, Bergman, Lindell, Wetzstein, 2020, for the networks.
    """

    def __init__(self, frequency: float, *, even: bool) -> None:
        self._frequency, self._even = frequency, even

    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return (1 +- exp(-2 f^2 a)) / 2."""
        lost_S = torch.expm1(-2 * self._frequency**2 * variances_S)  # below 0
        even_S, odd_S = 1 + lost_S / 2, -lost_S / 2
        value_S, slope_S = (even_S, odd_S) if self._even else (odd_S, even_S)
        return LayerMoments(
            value_S, self._frequency**2 * slope_S if slopes else None, variances_S.sqrt().unsqueeze(0) * self._frequency
        )

    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Return the expectations."""
        products_RC = rows.features_FS.T * columns.features_FS
        cosines_RC = torch.cos(angles_RC)
        lost_RC = torch.expm1((products_RC * cosines_RC).abs_().mul_(-2))
        folded_RC = torch.minimum(angles_RC, math.pi - angles_RC)
        # (a + c - 2 |b|) / 2 = (sqrt a - sqrt c)^2 / 2 + 2 sqrt(a c) sin^2(t / 2), with the smaller angle t.
        exponent_RC = torch.sin(folded_RC.div_(2)).square_().mul_(products_RC).mul_(2)
        exponent_RC.add_((rows.features_FS.T - columns.features_FS).square_(), alpha=0.5)
        larger_RC = exponent_RC.neg_().exp_()
        odd_RC = (larger_RC * lost_RC).mul_(torch.sign(cosines_RC)).mul_(-0.5)
        even_RC = larger_RC.mul_(lost_RC.div_(2).add_(1))
        value_RC, slope_RC = (even_RC, odd_RC) if self._even else (odd_RC, even_RC)
        slope_RC.mul_(self._frequency**2)
        return pair_moments(value_RC, None if rows.slope_S is None else slope_RC, rows, columns)
