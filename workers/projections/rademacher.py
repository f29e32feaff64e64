"""A dense map of random signs."""

import math
from functools import lru_cache
from typing import final

import torch

from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.philox import philox, stream_key

VERSION = 1
SLICE_ENTRIES = 2**21
"""Signs are drawn for at most this many entries at a time (8 MiB in float32), so that they are multiplied while still
in the processor's cache. Drawing them again for every batch then costs less than the multiplication."""

BITS = 128


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
        self.scale = 1 / math.sqrt(dim)
        self._seed = seed

    def accumulate(
        self, features_BK: torch.Tensor, gradients_BP: torch.Tensor, *, parameter: str, output: int, offset: int = 0
    ) -> None:
        """Multiply by the signs, drawn again for every batch in slices of bounded memory: O(B P K) FLOPs.

        The signs do not depend on the batch or the slice. The rounding of the product does: matrix multiplication is
        free to choose its order of summation by shape.
        """
        step = max(1, SLICE_ENTRIES // (self._num_blocks * BITS))
        for start in range(0, gradients_BP.shape[1], step):
            part_BP = gradients_BP[:, start : start + step]
            signs_PK = self._signs(
                parameter, output, offset + start, part_BP.shape[1], gradients_BP.dtype, gradients_BP.device
            )
            features_BK.addmm_(part_BP, signs_PK)

    def matrix(self, *, parameter: str, output: int, start: int, stop: int) -> torch.Tensor:
        """Return the signs as a (stop - start, K) float64 tensor."""
        return self._signs(parameter, output, start, stop - start, torch.float64, torch.device("cpu"))

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"rademacher-v{VERSION};dim={self.dim};seed={self._seed}"

    @property
    def _num_blocks(self) -> int:
        return -(-self.dim // BITS)

    def _signs(
        self, parameter: str, output: int, start: int, num: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        key = stream_key("rademacher", VERSION, self._seed, parameter, output)
        column_P1 = torch.arange(start, start + num, device=device).unsqueeze(1)
        block_1Q = torch.arange(self._num_blocks, device=device).unsqueeze(0)
        zero = torch.zeros_like(column_P1)
        words = philox((column_P1 & 0xFFFFFFFF, column_P1 >> 32, block_1Q, zero), key)
        # Two bytes at a time through a table of signs: several times faster than shifting out single bits.
        halves = torch.stack(words, dim=2).to(torch.int32).view(torch.int16).flatten().long().bitwise_and_(0xFFFF)
        signs_PK = _sign_table(dtype, device).index_select(0, halves).view(num, self._num_blocks * BITS)
        return signs_PK[:, : self.dim]


@lru_cache(maxsize=4)
def _sign_table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the 16 signs of every 16-bit word, lowest bit first, (65536, 16)."""
    words = torch.arange(2**16, device=device).unsqueeze(1)
    return ((words >> torch.arange(16, device=device)) & 1).to(dtype).mul_(2).sub_(1)
