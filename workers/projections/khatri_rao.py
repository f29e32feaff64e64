"""Products of dense signs on both sides of a layer."""

import math
from collections.abc import Mapping
from typing import final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.sides import Sides, SignedSides

VERSION = 1


@final
class KhatriRaoProjection(AbstractProjection):
    """Coordinate (d, i) of the stacked D x I gradients has the entry B[d, k] A[i, k] / sqrt(K), with independent signs.

    Feature k of a layer, sum_t <A_k, a_t> <B_k, d_t> / sqrt(K), takes matrix products of the layer's own factors, for any
    number of output vectors: O(B T (I + D) K) FLOPs. Features are independent and unbiased, but an entry is not
    independent of those of its row and column. For gradients d a^T and d' a'^T of rank one

        Var = (F(a, a') F(d, d') - <a, a'>^2 <d, d'>^2) / K,   F(x, y) = |x|^2 |y|^2 + 2 <x, y>^2 - 2 sum_p x_p^2 y_p^2,

    up to 8 / K of |G|^4 against the 2 / K of dense signs; for vectors (I = 1) it is the law of dense signs.
    """

    def __init__(self, *, dim: int, seed: int) -> None:
        self.dim = dim
        self._signs = SignedSides("khatri-rao", VERSION, seed)
        self._seed = seed

    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Multiply each side by its signs, then the two with each other."""
        first = next(iter(factors.values()))
        features_BK = first.like.new_zeros(first.num_samples, self.dim)
        for name, factor in factors.items():
            for part in factor.parts():
                sides = Sides.of(name, part)
                for samples, inputs_BTK, stacked_BTK in self._signs.positions(sides, part, self.dim, self.dim):
                    features_BK[samples] += (inputs_BTK * stacked_BTK).sum(dim=1)
        return features_BK.mul_(1 / math.sqrt(self.dim))

    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Compare products of a layer's sides with materialised gradients; there is one way for everything else."""
        return self._signs.ways(Sides.of("", factor), factor, self.dim, self.dim)

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"khatri-rao-v{VERSION};dim={self.dim};seed={self._seed}"
