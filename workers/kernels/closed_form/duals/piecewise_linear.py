"""Activations with one kink, at zero: ReLU, leaky ReLU, absolute value, and the identity without one."""

import math
from typing import final

import torch

from ntkpipe.workers.kernels.closed_form.duals.base import AbstractDual, LayerMoments, PairMoments


def kappas(cosine: torch.Tensor, sine: torch.Tensor, angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return kappa1 = (sin t + (pi - t) cos t) / pi and kappa0 = 1 - t / pi of Cho and Saul, 2009, entry by entry.

    They are E[s(u) s(v)] and E[s'(u) s'(v)] of s = sqrt(2) relu for unit variances. Cosine and sine may have a common
    factor, the product of two norms, which the first then has too.
    """
    switched = 1 - angle / math.pi
    return torch.mul(cosine, switched).add_(sine, alpha=1 / math.pi), switched


@final
class PiecewiseLinearDual(AbstractDual):
    """s(z) = z for z > 0 and slope z for z < 0, as p z + q |z| with p, q = (1 +- slope) / 2.

    Products of odd and even parts have mean zero, so that with b = sqrt(a c) cos t

        D = p^2 b + q^2 sqrt(a c) k(t),  k(t) = E|z z'| = cos t + (2 / pi) (sin t - t cos t),
        D' = p^2 + q^2 (1 - 2 t / pi).

    Slope 0 is the ReLU: half of :func:`kappas`, times sqrt(a c), which are not used here because networks need the gap
    sqrt(a c) - D too, without cancellation. At zero the derivative is p, the mean of both sides.
    """

    def __init__(self, slope: float) -> None:
        self._odd, self._even = ((1 + slope) / 2) ** 2, ((1 - slope) / 2) ** 2

    def prepare(self, variances_S: torch.Tensor, *, slopes: bool) -> LayerMoments:
        """Return (p^2 + q^2) times the variances, and p^2 + q^2, or p^2 at variance zero."""
        slope_S = self._odd + self._even * (variances_S > 0).to(variances_S.dtype)
        return LayerMoments(
            variances_S * (self._odd + self._even), slope_S if slopes else None, variances_S.sqrt().unsqueeze(0)
        )

    def pairs(self, angles_RC: torch.Tensor, rows: LayerMoments, columns: LayerMoments) -> PairMoments:
        """Return the expectations; the gap keeps its relative accuracy near angle zero."""
        deviations_RC = rows.features_FS.T * columns.features_FS  # sqrt(a c)
        gap_RC = torch.zeros_like(angles_RC)
        if self._odd:
            gap_RC.add_(torch.sin(angles_RC / 2).square_(), alpha=2 * self._odd)
        if self._even:
            folded_RC = torch.minimum(angles_RC, math.pi - angles_RC)
            half_RC = torch.sin(folded_RC / 2)
            # 1 - cos t, and from it sin t - t cos t.
            versed_RC = 2 * half_RC.square_()
            excess_RC = torch.sin(folded_RC).sub_(folded_RC).addcmul_(folded_RC, versed_RC)
            gap_RC.add_(versed_RC.sub_(excess_RC, alpha=2 / math.pi), alpha=self._even)
        gap_RC.mul_(deviations_RC)
        value_RC = deviations_RC.mul_(self._odd + self._even).sub_(gap_RC)
        slope_RC = None
        if rows.slope_S is not None:
            slope_RC = (angles_RC * (-2 * self._even / math.pi)).add_(self._odd + self._even)
        return PairMoments(value_RC, gap_RC, slope_RC)
