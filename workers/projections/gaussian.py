"""A dense map of normal numbers."""

from collections.abc import Mapping
from typing import final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.rates import rates_of
from ntkpipe.workers.philox import stream_key
from ntkpipe.workers.projections.base import AbstractProjection, dense_ways
from ntkpipe.workers.projections.dense import project_dense, random_normals

VERSION = 1
SLICE_ENTRIES = 2**16
"""Normal numbers are drawn for at most this many entries at a time: each comes from a word of eight bytes, of which the
generator holds several; they stay in the processor's cache."""

DRAW_PASSES = 120
"""Drawing a normal number takes as long as this many reads and writes of one, measured on a CPU; signs take about four."""


@final
class GaussianProjection(AbstractProjection):
    """Every entry is a normal number; the scale is 1/sqrt(K). The reference that other maps are compared with.

    For vectors a, b on all coordinates, E<Ra, Rb> = <a, b> and Var<Ra, Rb> = (|a|^2 |b|^2 + <a, b>^2) / K: dense signs are
    never worse, and far cheaper to draw.

    Column p takes ceil(K / 4) counters (column low, column high, block of 4 features); see ``random_normals``. The first
    features of a larger map are those of a smaller one.
    """

    def __init__(self, *, dim: int, seed: int) -> None:
        self.dim = dim
        self._seed = seed

    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Multiply by the normal numbers: O(B V P K) FLOPs."""
        return project_dense(factors, self.dim, self._draw, SLICE_ENTRIES)

    def matrix(self, parameter: str, start: int, stop: int) -> torch.Tensor:
        """Return the unscaled entries of a run of stacked coordinates as a (stop - start, K) float64 tensor."""
        return self._draw(parameter, torch.arange(start, stop), torch.float64)

    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Materialise gradients; the map itself, drawn for every batch, takes longer than they do."""
        drawn = rates_of(factor.like.device).passes(DRAW_PASSES * float(factor.num_vectors * factor.numel * self.dim))
        return {way: seconds + drawn for way, seconds in dense_ways(factor, self.dim).items()}

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"gaussian-v{VERSION};dim={self.dim};seed={self._seed}"

    def _draw(self, parameter: str, columns_P: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        key = stream_key("gaussian", VERSION, self._seed, parameter)
        return random_normals(key, columns_P, self.dim, dtype)
