"""A sparse map: every coordinate goes, with random signs, to a few random features."""

import math
from collections import OrderedDict
from typing import final

import torch

from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.philox import philox, stream_key

VERSION = 1
CACHE_BYTES = 512 * 2**20
"""Rows and signs are the same for every batch; drawing them costs more than applying them. Maps of up to about 60
million (coordinate, output) pairs stay in memory, larger ones are drawn again."""


@final
class SparseProjection(AbstractProjection):
    """The block form of the sparse Johnson-Lindenstrauss transform (Kane, Nelson 2014).

    The K features are split into s equal blocks; each coordinate has one entry +1 or -1 in each block, in a uniform row.
    The scale is 1/sqrt(s). E<Sa, Sb> = <a, b>, and
    Var<Sa, Sb> = (|a|^2 |b|^2 + <a, b>^2 - 2 sum_p a_p^2 b_p^2) / K
    as for dense signs: two coordinates meet in each of the s blocks with chance s/K, and each meeting contributes the
    square of a_p b_q + a_q b_p over s^2.

    Coordinate p takes the counter (p low, p high, block pair); each pair of words gives one row, by multiply-shift of
    32 bits, and one sign.
    """

    def __init__(self, *, dim: int, nonzeros: int, seed: int) -> None:
        assert dim % nonzeros == 0
        self.dim = dim
        self.scale = 1 / math.sqrt(nonzeros)
        self._nonzeros = nonzeros
        self._seed = seed
        self._cache: OrderedDict[tuple[object, ...], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._cached_bytes = 0

    def accumulate(
        self, features_BK: torch.Tensor, gradients_BP: torch.Tensor, *, parameter: str, output: int, offset: int = 0
    ) -> None:
        """Add signed gradients to their rows, coordinate by coordinate in order: O(B P s), the same bits for any B."""
        num = gradients_BP.shape[1]
        rows_SP, signs_SP = self._map(parameter, output, offset, num, gradients_BP.device)
        for rows_P, signs_P in zip(rows_SP, signs_SP, strict=True):
            features_BK.index_add_(1, rows_P, gradients_BP * signs_P.to(gradients_BP.dtype))

    def matrix(self, *, parameter: str, output: int, start: int, stop: int) -> torch.Tensor:
        """Return the map as a dense (stop - start, K) float64 tensor."""
        rows_SP, signs_SP = self._map(parameter, output, start, stop - start, torch.device("cpu"))
        dense_PK = torch.zeros(stop - start, self.dim, dtype=torch.float64)
        for rows_P, signs_P in zip(rows_SP, signs_SP, strict=True):
            dense_PK[torch.arange(stop - start), rows_P] = signs_P.double()
        return dense_PK

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"sjlt-v{VERSION};dim={self.dim};nonzeros={self._nonzeros};seed={self._seed}"

    def _map(
        self, parameter: str, output: int, start: int, num: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rows (int64) and signs (int8) of a range of coordinates, (s, P) each, from the cache if possible."""
        key = (parameter, output, start, num, device)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        found = self._draw(parameter, output, start, num, device)
        self._cache[key] = found
        self._cached_bytes += _num_bytes(found)
        while self._cached_bytes > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _num_bytes(dropped)
        return found

    def _draw(
        self, parameter: str, output: int, start: int, num: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key = stream_key("sjlt", VERSION, self._seed, parameter, output)
        block_rows = self.dim // self._nonzeros
        column_1P = torch.arange(start, start + num, device=device).unsqueeze(0)
        pair_Q1 = torch.arange(-(-self._nonzeros // 2), device=device).unsqueeze(1)
        zero = torch.zeros_like(column_1P)
        words = philox((column_1P & 0xFFFFFFFF, column_1P >> 32, pair_Q1, zero), key)
        row_words, sign_words = (
            torch.stack(pair, dim=1).flatten(0, 1)[: self._nonzeros] for pair in (words[0::2], words[1::2])
        )
        first_S1 = torch.arange(self._nonzeros, device=device).unsqueeze(1) * block_rows
        rows_SP = ((row_words * block_rows) >> 32) + first_S1
        # 64-bit rows: PyTorch adds along them several times faster than along 32-bit ones.
        return rows_SP, ((sign_words & 1) * 2 - 1).to(torch.int8)


def _num_bytes(tensors: tuple[torch.Tensor, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
