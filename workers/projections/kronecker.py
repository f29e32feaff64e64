"""A small dense matrix on each side of a layer, for comparison with other systems."""

import math
from collections.abc import Mapping
from typing import final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.sides import Sides, SignedSides

VERSION = 1


@final
class KroneckerProjection(AbstractProjection):
    """All products of P signed sums of the inputs with Q signed sums of the deltas (LoGra, Choe et al. 2024).

    In each half of the features P = floor(sqrt(K / 2)) and Q = floor(K / 2 / P); feature q P + p is
    sum_t <A_p, a_t> <B_q, d_t> / sqrt(2 P Q), and the features that are left over are zero. For gradients d a^T and d' a'^T
    of rank one, a half has

        Var = (<a, a'>^2 + v(a, a') / P) (<d, d'>^2 + v(d, d') / Q) - <a, a'>^2 <d, d'>^2,
        v(x, y) = |x|^2 |y|^2 + <x, y>^2 - 2 sum_p x_p^2 y_p^2,

    about (2 / P + 2 / Q) |G|^4 for a sample with itself: the error falls with the fourth root of K. Between parameters the
    law is that of dense signs. Vectors (I = 1) have no second side; they take P' = 1, Q' = P Q, which is dense signs.
    """

    def __init__(self, *, dim: int, seed: int) -> None:
        self.dim = dim
        self._seed = seed
        self._num_inputs = math.isqrt(dim // 2)
        self._num_stacked = dim // 2 // self._num_inputs
        self._halves = [SignedSides("kronecker", VERSION, seed, half) for half in range(2)]

    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Multiply each side by its signs, then join them: O(B T (I P + D Q + P Q)) FLOPs."""
        first = next(iter(factors.values()))
        used = self._num_inputs * self._num_stacked
        features_B2W = first.like.new_zeros(first.num_samples, 2, self.dim // 2)
        for half, signs in enumerate(self._halves):
            for name, factor in factors.items():
                for part in factor.parts():
                    sides = Sides.of(name, part)
                    blocks = signs.positions(sides, part, *self._widths(sides))
                    for samples, inputs_BTP, stacked_BTQ in blocks:
                        joined_BQP = stacked_BTQ.transpose(1, 2) @ inputs_BTP
                        features_B2W[samples, half, :used] += joined_BQP.flatten(1)
        return features_B2W.flatten(1).mul_(1 / math.sqrt(2 * used))

    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Compare products of a layer's sides with materialised gradients; there is one way for everything else."""
        sides = Sides.of("", factor)
        seconds = self._halves[0].ways(sides, factor, *self._widths(sides))
        return {way: 2 * each for way, each in seconds.items()}

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"kronecker-v{VERSION};dim={self.dim};seed={self._seed}"

    def _widths(self, sides: Sides) -> tuple[int, int]:
        """Return P and Q."""
        if sides.inputs == 1:
            return 1, self._num_inputs * self._num_stacked
        return self._num_inputs, self._num_stacked
