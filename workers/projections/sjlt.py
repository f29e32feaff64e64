"""A sparse map: every coordinate goes, with random signs, to a few random features."""

import math
from collections.abc import Mapping
from typing import final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.rates import rates_of
from ntkpipe.workers.philox import philox, stream_key
from ntkpipe.workers.projections.base import AbstractProjection, add_slices

VERSION = 2
CACHE_BYTES = 256 * 2**20
"""The map is the same for every batch, and drawing it costs about as much as applying it to 64 samples. At four bytes
an entry, 33 million coordinates with two entries each stay in memory; the rest is drawn every time."""

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
        assert nonzeros % 2 == 0, "each half of the features is a sketch of its own"
        assert dim < 2**31
        self.dim = dim
        self._nonzeros = nonzeros
        self._seed = seed
        self._cache: dict[tuple[str, int, int, torch.device], torch.Tensor] = {}
        self._cached_bytes = 0

    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Add signed gradients to their rows: O(B V P s). The bits of a sample do not depend on the other samples.

        On a CPU each feature takes its coordinates one by one in order, so that the bits do not depend on how the
        coordinates are cut into slices either.
        """
        return add_slices(factors, self.dim, self._accumulate).mul_(1 / math.sqrt(self._nonzeros))

    def matrix(self, parameter: str, start: int, stop: int) -> torch.Tensor:
        """Return the map of a run of stacked coordinates as a dense (stop - start, K) float64 tensor."""
        entries_SP = self._draw(parameter, start, stop - start, torch.device("cpu"))
        rows_SP, signs_SP = _rows_and_signs(entries_SP, torch.float64)
        return torch.zeros(stop - start, self.dim, dtype=torch.float64).scatter_(1, rows_SP.T, signs_SP.T)

    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Materialise gradients."""
        entries = float(factor.num_samples * factor.num_vectors * factor.numel)
        return {"gradients": self._nonzeros * rates_of(factor.like.device).scatter(entries)}

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"sjlt-v{VERSION};dim={self.dim};nonzeros={self._nonzeros};seed={self._seed}"

    def _accumulate(self, features_BK: torch.Tensor, gradients_BW: torch.Tensor, parameter: str, offset: int) -> None:
        num = gradients_BW.shape[1]
        entries_SP = self._entries(parameter, offset, num, gradients_BW.device)
        if features_BK.is_cuda:
            _gather(features_BK, gradients_BW, entries_SP)
            return
        step = max(1, SLICE_ENTRIES // max(1, gradients_BW.shape[0]))
        for start in range(0, num, step):
            part_BW = gradients_BW[:, start : start + step]
            for entries_P in entries_SP[:, start : start + step]:
                rows_P, signs_P = _rows_and_signs(entries_P, gradients_BW.dtype)
                features_BK.index_add_(1, rows_P, part_BW * signs_P)

    def _entries(self, parameter: str, start: int, num: int, device: torch.device) -> torch.Tensor:
        """Return the (s, P) entries of a range of coordinates, from the cache if they are there."""
        key = (parameter, start, num, device)
        found = self._cache.get(key)
        if found is None:
            found = self._draw(parameter, start, num, device)
            num_bytes = found.numel() * found.element_size()
            # Batches ask for the slices in one fixed cycle: dropping the oldest one for the newest, as soon as the
            # cycle exceeds the budget, would drop each just before it is asked for again.
            if self._cached_bytes + num_bytes <= CACHE_BYTES:
                self._cache[key] = found
                self._cached_bytes += num_bytes
        return found

    def _draw(self, parameter: str, start: int, num: int, device: torch.device) -> torch.Tensor:
        """Return the row of each entry as (s, P) int32, complemented where the sign is -1."""
        key = stream_key("sjlt", VERSION, self._seed, parameter)
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
