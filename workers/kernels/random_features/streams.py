"""Streams of random numbers that are functions of (name, seed, position): every worker draws the same ones.

All numbers are float64 and drawn on the CPU, whose logarithms and cosines every worker shares, wherever they are to be
used. Number i of a stream does not depend on how many are drawn.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.workers.philox import Words, philox, stream_key
from ntkpipe.workers.projections.dense import random_normals

VERSION = 1
"""Part of the name of every stream; to be raised when the numbers change."""

SLICE_ENTRIES = 2**18
"""Normal numbers are made for at most this many entries at a time: the generator holds several words for each."""

CPU = torch.device("cpu")

_WORD = 2.0**-32
_MASK = 0xFFFFFFFF


@final
@dataclass(frozen=True, slots=True)
class Stream:
    """Random numbers named by a seed and some words."""

    seed: int
    """Of the feature map."""
    parts: tuple[str | int, ...]
    """What the numbers are for; two streams with different parts are independent."""

    def normals(self, num: int, width: int, first: int = 0) -> torch.Tensor:
        """Return standard normal numbers, (num, width); row r of them is row first + r of the stream."""
        normals_MD = torch.empty(num, width, dtype=torch.float64, device=CPU)
        step = max(1, SLICE_ENTRIES // max(1, width))
        for start in range(0, num, step):
            rows_M = torch.arange(first + start, first + min(start + step, num), device=CPU)
            normals_MD[start : start + step] = random_normals(self._key(), rows_M, width, torch.float64)
        return normals_MD

    def uniforms(self, positions_P: torch.Tensor, column: int = 0) -> torch.Tensor:
        """Return numbers in (0, 1), uniform on 2^53 values, one for each position.

        Args:
            positions_P: int64 positions, of any shape, in [0, 2^63), on the CPU.
            column: Independent numbers of the same positions, in [0, 2^32).
        """
        return _uniform(*self._words(positions_P, column)[:2])

    def uniform_pairs(self, positions_P: torch.Tensor, column: int = 0) -> torch.Tensor:
        """Return two independent rows of numbers as of :meth:`uniforms`, the first of which is the same, (2, ...)."""
        w0, w1, w2, w3 = self._words(positions_P, column)
        return torch.stack((_uniform(w0, w1), _uniform(w2, w3)))

    def signs(self, num: int) -> torch.Tensor:
        """Return ``num`` times +1 or -1 with equal chance."""
        bits_N = self._words(torch.arange(num, device=CPU), 0)[0] & 1
        return bits_N.double().mul_(2).sub_(1)

    def permutations(self, num: int, size: int) -> torch.Tensor:
        """Return ``num`` uniform permutations of ``size`` numbers, (num, size)."""
        return self.uniforms(torch.arange(num * size, device=CPU).view(num, size)).argsort(dim=1, stable=True)

    def gammas(self, num: int, shape: float) -> torch.Tensor:
        """Return ``num`` Gamma numbers of a shape and scale 1, by the rejection of Marsaglia and Tsang (2000).

        For shapes below one, a number of shape + 1 is multiplied by a uniform one to the power 1 / shape.
        """
        boosted = shape if shape >= 1 else shape + 1
        offset = boosted - 1 / 3
        slope = 1 / math.sqrt(9 * offset)
        gammas_N = torch.zeros(num, dtype=torch.float64, device=CPU)
        for waiting_W, normals_W, uniforms_W in self._attempts(gammas_N):
            cubes_W = (1 + slope * normals_W) ** 3
            bounds_W = normals_W.square() / 2 + offset * (1 - cubes_W + cubes_W.clamp_min(1e-300).log())
            accepted_W = (cubes_W > 0) & (uniforms_W.log() < bounds_W)
            gammas_N[waiting_W[accepted_W]] = offset * cubes_W[accepted_W]
        if shape < 1:
            gammas_N *= self.uniforms(torch.arange(num, device=CPU), _MASK) ** (1 / shape)
        return gammas_N

    def chis(self, num: int, freedom: float) -> torch.Tensor:
        """Return ``num`` chi numbers: lengths of standard normal vectors in ``freedom`` dimensions."""
        return self.gammas(num, freedom / 2).mul_(2).sqrt_()

    def _attempts(self, accepted_N: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield a normal and a uniform number for all positions that are still zero, until none is."""
        attempt = 0
        while len(waiting_W := (accepted_N == 0).nonzero().squeeze(1)):
            w0, w1, w2, w3 = self._words(waiting_W, attempt)
            radii_W = w0.double().add_(0.5).mul_(_WORD).log_().mul_(-2).sqrt_()
            yield waiting_W, radii_W * (2 * math.pi * _WORD * w1).cos(), _uniform(w2, w3)
            attempt += 1

    def _words(self, positions_P: torch.Tensor, column: int) -> Words:
        columns_P = torch.full_like(positions_P, column)
        # The last word of counters of normal numbers is 0: no counter is used for two purposes.
        return philox((positions_P & _MASK, positions_P >> 32, columns_P, torch.ones_like(positions_P)), self._key())

    def _key(self) -> tuple[int, int]:
        return stream_key("random_features", VERSION, self.seed, *self.parts)


def _uniform(high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Return (k + 1/2) / 2^53 for the 53-bit numbers k that two words make: neither 0 nor 1."""
    bits = (high << 21) | (low >> 11)
    # For the largest k the sum is rounded up to 2^53.
    return bits.double().add_(0.5).mul_(2.0**-53).clamp_max_(1 - 2.0**-53)
