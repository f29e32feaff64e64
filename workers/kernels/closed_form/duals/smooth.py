"""Smooth activations whose expectations have a closed form: erf, GELU, sine and cosine."""

import math
from typing import final

import torch

from ntkpipe.workers.kernels.closed_form.duals.base import AbstractDual, LayerMoments, PairMoments, pair_moments


@final
class ErfDual(AbstractDual):
    """s = erf.

    With R^2 = (1 + 2 a)(1 + 2 c) - 4 b^2,

        D = (2 / pi) arctan(2 b / R),  D' = (4 / pi) / R.

    R^2 is computed as 1 + 2 a + 2 c + 4 a c sin^2 t, which cannot cancel. Williams, 1997.
    """

    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return the expectations at angle zero."""
        root_S = (1 + 4 * variances_S).sqrt()
        value_S = torch.atan2(2 * variances_S, root_S) * (2 / math.pi)
        return LayerMoments(value_S, 4 / math.pi / root_S if slopes else None, variances_S.unsqueeze(0))

    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Return the expectations."""
        a_R1, c_1C = rows.features_FS.T, columns.features_FS
        root_RC = (torch.sin(angles_RC).square_() * (2 * a_R1) * (2 * c_1C)).add_(1 + 2 * a_R1).add_(2 * c_1C).sqrt_()
        twice_RC = torch.cos(angles_RC) * (2 * a_R1.sqrt()) * c_1C.sqrt()
        value_RC = torch.atan2(twice_RC, root_RC).mul_(2 / math.pi)
        slope_RC = None if rows.slope_S is None else root_RC.reciprocal_().mul_(4 / math.pi)
        return pair_moments(value_RC, slope_RC, rows, columns)


@final
class GeluDual(AbstractDual):
    """s(z) = z Phi(z) with the normal distribution function.

    With p = (1 + a)(1 + c), R^2 = p - b^2 and h = arctan(b / R),

        D = ((b^2 + a c R^2) / (p R) + b h) / (2 pi) + b / 4,
        D' = ((1 / R^2 + (1 - a c) / p + 1) b / R + h) / (2 pi) + 1 / 4.

    R^2 is computed as 1 + a + c + a c sin^2 t, which cannot cancel. Tsuchida, Pearce, van der Heide, Roosta, Gallagher,
    2021.
    """

    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return the expectations at angle zero."""
        value_S, slope_S = _gelu(variances_S, variances_S, variances_S, 1 + 2 * variances_S)
        return LayerMoments(value_S, slope_S if slopes else None, variances_S.unsqueeze(0))

    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Return the expectations."""
        a_R1, c_1C = rows.features_FS.T, columns.features_FS
        b_RC = torch.cos(angles_RC) * a_R1.sqrt() * c_1C.sqrt()
        squared_RC = (torch.sin(angles_RC).square_() * a_R1 * c_1C).add_(1 + a_R1).add_(c_1C)
        value_RC, slope_RC = _gelu(a_R1, b_RC, c_1C, squared_RC)
        return pair_moments(value_RC, None if rows.slope_S is None else slope_RC, rows, columns)


def _gelu(
    a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, squared: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return D and D' for R^2 = ``squared``."""
    inverse, product = 1 / ((1 + a) * (1 + c)), a * c
    root = squared.sqrt()
    ratio = b / root
    turn = torch.atan2(b, root)
    # b^2 = p - R^2 splits the fraction: (b^2 + a c R^2) / (p R) = b / p * (b / R) + a c R / p.
    value = (ratio * b).addcmul(product, root).mul_(inverse).addcmul(b, turn).div_(2 * math.pi).add_(b, alpha=0.25)
    slope = (1 / squared).add_((1 - product) * inverse + 1).mul_(ratio).add_(turn).div_(2 * math.pi).add_(0.25)
    return value, slope


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
