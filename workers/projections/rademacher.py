"""A dense map of random signs."""

from collections.abc import Mapping
from typing import final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.philox import stream_key
from ntkpipe.workers.projections.base import AbstractProjection, dense_ways
from ntkpipe.workers.projections.dense import project_dense, random_signs

VERSION = 2
SLICE_ENTRIES = 2**21
"""Signs are drawn for at most this many entries at a time (8 MiB in float32), so that they are multiplied while still
in the processor's cache. Drawing them again for every batch then costs less than the multiplication."""


@final
class RademacherProjection(AbstractProjection):
    """Every entry is +1 or -1 with equal chance; the scale is 1/sqrt(K).

    For vectors a, b on all coordinates, E<Ra, Rb> = <a, b> and
    Var<Ra, Rb> = (|a|^2 |b|^2 + <a, b>^2 - 2 sum_p a_p^2 b_p^2) / K.

    Column p takes ceil(K / 128) counters (column low, column high, block of 128 features); feature k is bit k mod 32 of
    word (k mod 128) // 32. The first features of a larger map are those of a smaller one.
    """

    def __init__(self, *, dim: int, seed: int) -> None:
        self.dim = dim
        self._seed = seed

    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Multiply by the signs: O(B V P K) FLOPs."""
        return project_dense(factors, self.dim, self._draw, SLICE_ENTRIES)

    def matrix(self, parameter: str, start: int, stop: int) -> torch.Tensor:
        """Return the signs of a run of stacked coordinates as a (stop - start, K) float64 tensor."""
        return self._draw(parameter, torch.arange(start, stop), torch.float64)

    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Materialise gradients."""
        return dense_ways(factor, self.dim)

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"rademacher-v{VERSION};dim={self.dim};seed={self._seed}"

    def _draw(self, parameter: str, columns_P: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        key = stream_key("rademacher", VERSION, self._seed, parameter)
        return random_signs(key, columns_P, self.dim, dtype)
