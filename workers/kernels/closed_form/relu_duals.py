"""The dual of the ReLU where equal and parallel samples must be recognised."""

import math

import torch

PARALLEL = 64 * torch.finfo(torch.float64).eps
"""Relative to the norms. A correlation so close to 1 is rounded from 1 in all likelihood: angles below 1.7e-7 are lost in
the rounding of any inner product, but an angle of 1e-8 instead of 0 would cost the tangent kernel half of its digits."""


def relu_duals(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return E[s(u) s(v)] and E[s'(u) s'(v)] of s = sqrt(2) relu for Gaussians of covariances (a, b, c), broadcast.

    With cos t = b / sqrt(a c): (sin t + (pi - t) cos t) sqrt(a c) / pi and 1 - t / pi, where t is 0 or pi exactly for
    samples that are parallel up to rounding. At a c = 0 the first is 0, and the second, which has no meaning, finite.
    """
    norm = torch.sqrt(a * c)
    b = torch.minimum(torch.maximum(b, -norm), norm)
    gap = norm - b.abs()
    # |b| and the norm are close where it matters, so that their difference is exact.
    sine = torch.sqrt(torch.where(gap <= PARALLEL * norm, 0.0, gap) * (norm + b.abs()))
    angle = torch.atan2(sine, b)
    derivative = 1 - angle / math.pi
    return sine.div_(math.pi).add_(b.mul_(derivative)), derivative
