"""The expectations of activations for pairs that are given by their covariance matrices, entry by entry.

Recursions that mix the covariances of several pairs, as those of images, graphs and paths do, have no angle that could be
carried along. They pay for it near correlations of 1 and -1: an angle of 1e-8 is within the rounding of a covariance.
"""

from collections.abc import Callable
from typing import Literal

import torch

from ntkpipe.workers.kernels.closed_form.duals.piecewise_linear import kappas
from ntkpipe.workers.kernels.closed_form.duals.smooth import erf_moments, gelu_moments

PARALLEL = 64 * torch.finfo(torch.float64).eps
"""Relative to the norms. A correlation so close to 1 is rounded from 1 in all likelihood: angles below 1.7e-7 are lost in
the rounding of any inner product, but an angle of 1e-8 instead of 0 would cost the tangent kernel half of its digits."""

CovarianceDual = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From variances a and c and covariances b, which are broadcast, to E[s(u) s(v)], a tensor of its own."""


def relu_duals(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E[s(u) s(v)] and E[s'(u) s'(v)] of s = sqrt(2) relu for Gaussians of covariances (a, b, c), broadcast.

    With cos t = b / sqrt(a c): (sin t + (pi - t) cos t) sqrt(a c) / pi and 1 - t / pi, where t is 0 or pi exactly for
    samples that are parallel up to rounding. At a c = 0 the first is 0, and the second, which has no meaning, finite.
    """
    norm = torch.sqrt(a * c)
    cosine = torch.minimum(torch.maximum(b, -norm), norm)
    size = cosine.abs()
    gap = norm - size
    # |b| and the norm are close where it matters, so that their difference is exact.
    sine = torch.where(gap <= PARALLEL * norm, 0.0, gap).mul_(size.add_(norm)).sqrt_()
    return kappas(cosine, sine, torch.atan2(sine, cosine))


def covariance_dual(activation: Literal["identity", "relu", "erf", "gelu"]) -> CovarianceDual:
    """Return E[s(u) s(v)] as a function of covariances for ``identity``, ``relu`` (times sqrt(2)), ``erf`` or ``gelu``."""
    match activation:
        case "identity":
            return lambda a, b, c: b.clone()
        case "relu":
            return lambda a, b, c: relu_duals(a, b, c)[0]
        case "erf":
            return lambda a, b, c: erf_moments(a, c, b, _determinant(a, b, c), slopes=False)[0]
        case "gelu":
            return lambda a, b, c: gelu_moments(a, c, b, _determinant(a, b, c), slopes=False)[0]


def _determinant(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return a c - b^2, whose rounding error a smooth activation does not magnify."""
    return torch.addcmul(a * c, b, b, value=-1).clamp_min_(0)
