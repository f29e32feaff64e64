"""A sparse map: every coordinate goes, with random signs, to a few random features."""

import math
from typing import final

import torch

from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.philox import philox, stream_key

VERSION = 1
CACHE_BYTES = 256 * 2**20
"""The map is the same for every batch, and drawing it costs about as much as applying it to 64 samples. At four bytes
an entry, 67 million (coordinate, output) pairs with one entry each stay in memory; the rest is drawn every time."""

SLICE_ENTRIES = 2**20
"""Signed gradients are built for at most this many entries at a time (4 MiB in float32): they are added while still in
the processor's cache, several times faster than through a copy of all gradients."""


@final
class SparseProjection(AbstractProjection):
    """The block form of the sparse Johnson-Lindenstrauss transform (Kane, Nelson 2014).

    The K features are split into s equal blocks; each coordinate has one entry +1 or -1 in each block, in a uniform row.
    The scale is 1/sqrt(s). E<Sa, Sb> = <a, b>, and
    Var<Sa, Sb> = (|a|^2 |b|^2 + <a, b>^2 - 2 sum_p a_p^2 b_p^2) / K
    as for dense signs and for every s: two coordinates meet in each of the s blocks with chance s/K, and each meeting
    contributes the square of a_p b_q + a_q b_p over s^2.

    Coordinate p takes the counter (p low, p high, block pair); each pair of words gives one row, by multiply-shift of
    32 bits, and one sign.
    """

    def __init__(self, *, dim: int, nonzeros: int, seed: int) -> None:
        assert dim % nonzeros == 0
        assert dim < 2**31
        self.dim = dim
        self.scale = 1 / math.sqrt(nonzeros)
        self._nonzeros = nonzeros
        self._seed = seed
        self._cache: dict[tuple[str, int, int, int, torch.device], torch.Tensor] = {}
        self._cached_bytes = 0

    def accumulate(
        self, features_BK: torch.Tensor, gradients_BP: torch.Tensor, *, parameter: str, output: int, offset: int = 0
    ) -> None:
        """Add signed gradients to their rows: O(B P s). The bits of a sample do not depend on the other samples.

        On a CPU each feature takes its coordinates one by one in order, so that the bits do not depend on how the
        coordinates are cut into calls either.
        """
        num = gradients_BP.shape[1]
        entries_SP = self._entries(parameter, output, offset, num, gradients_BP.device)
        if features_BK.is_cuda:
            _gather(features_BK, gradients_BP, entries_SP)
            return
        step = max(1, SLICE_ENTRIES // max(1, gradients_BP.shape[0]))
        for start in range(0, num, step):
            part_BP = gradients_BP[:, start : start + step]
            for entries_P in entries_SP[:, start : start + step]:
                rows_P, signs_P = _rows_and_signs(entries_P, gradients_BP.dtype)
                features_BK.index_add_(1, rows_P, part_BP * signs_P)

    def matrix(self, *, parameter: str, output: int, start: int, stop: int) -> torch.Tensor:
        """Return the map as a dense (stop - start, K) float64 tensor."""
        entries_SP = self._draw(parameter, output, start, stop - start, torch.device("cpu"))
        rows_SP, signs_SP = _rows_and_signs(entries_SP, torch.float64)
        return torch.zeros(stop - start, self.dim, dtype=torch.float64).scatter_(1, rows_SP.T, signs_SP.T)

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"sjlt-v{VERSION};dim={self.dim};nonzeros={self._nonzeros};seed={self._seed}"

    def _entries(self, parameter: str, output: int, start: int, num: int, device: torch.device) -> torch.Tensor:
        """Return the (s, P) entries of a range of coordinates, from the cache if they are there."""
        key = (parameter, output, start, num, device)
        found = self._cache.get(key)
        if found is None:
            found = self._draw(parameter, output, start, num, device)
            num_bytes = found.numel() * found.element_size()
            # Batches ask for the slices in one fixed cycle: dropping the oldest one for the newest, as soon as the
            # cycle exceeds the budget, would drop each just before it is asked for again.
            if self._cached_bytes + num_bytes <= CACHE_BYTES:
                self._cache[key] = found
                self._cached_bytes += num_bytes
        return found

    def _draw(self, parameter: str, output: int, start: int, num: int, device: torch.device) -> torch.Tensor:
        """Return the row of each entry as (s, P) int32, complemented where the sign is -1."""
        key = stream_key("sjlt", VERSION, self._seed, parameter, output)
        block_rows = self.dim // self._nonzeros
        first_S1 = torch.arange(0, self.dim, block_rows, device=device).unsqueeze(1)
        pair_Q1 = torch.arange(-(-self._nonzeros // 2), device=device).unsqueeze(1)
        zero = torch.zeros_like(pair_Q1)
        entries_SP = torch.empty(self._nonzeros, num, dtype=torch.int32, device=device)
        step = max(1, SLICE_ENTRIES // 8 // self._nonzeros)  # int64 words, and several of them for each entry
        for first in range(0, num, step):
            column_P = torch.arange(start + first, start + min(first + step, num), device=device)
            words = philox((column_P & 0xFFFFFFFF, column_P >> 32, pair_Q1, zero), key)
            row_words, sign_words = (
                torch.stack(pair, dim=1).flatten(0, 1)[: self._nonzeros] for pair in (words[0::2], words[1::2])
            )
            rows_SP = ((row_words * block_rows) >> 32) + first_S1
            entries_SP[:, first : first + step] = rows_SP ^ ((sign_words & 1) - 1)
        return entries_SP


def _rows_and_signs(entries: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the int64 rows, which PyTorch adds along much faster than int32 ones, and the signs of entries."""
    complemented = entries >> 31
    return (entries ^ complemented).long(), (2 * complemented + 1).to(dtype)


def _gather(features_BK: torch.Tensor, gradients_BP: torch.Tensor, entries_SP: torch.Tensor) -> None:
    """Add signed gradients to their rows with one sum per feature, over its coordinates in order.

    On a GPU adding to rows at random is done by atomic operations, whose order, and with it the rounding, changes from
    run to run.
    """
    rows_SP, signs_SP = _rows_and_signs(entries_SP, gradients_BP.dtype)
    sorted_rows, order = rows_SP.flatten().sort(stable=True)
    starts_K = torch.searchsorted(sorted_rows, torch.arange(features_BK.shape[1], device=order.device))
    sums_KB = torch.nn.functional.embedding_bag(
        order % gradients_BP.shape[1],
        gradients_BP.T,
        starts_K,
        mode="sum",
        per_sample_weights=signs_SP.flatten()[order],
    )
    features_BK.add_(sums_KB.T)
