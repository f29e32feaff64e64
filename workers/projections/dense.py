"""Dense random matrices as functions of their coordinates, and gradients multiplied by them in slices of bounded memory.

Column p of a matrix takes the counters (p low, p high, block of features); a key names the matrix. The first features of a
larger matrix are those of a smaller one.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.philox import Words, philox
from ntkpipe.workers.projections.base import add_slices

BITS = 128
"""Signs that one counter gives."""
NORMALS = 4
"""Normal numbers that one counter gives."""

Draw = Callable[[str, torch.Tensor, torch.dtype], torch.Tensor]
"""(parameter, coordinates (P,), dtype) to the unscaled entries of the map, (P, K)."""


def random_signs(key: tuple[int, int], columns_P: torch.Tensor, num: int, dtype: torch.dtype) -> torch.Tensor:
    """Return +1 or -1 with equal chance, shape (P, num), on the device of the columns.

    Feature k is bit k mod 32 of word (k mod 128) // 32 of block k // 128.
    """
    blocks = -(-num // BITS)
    words = _words(key, columns_P, blocks)
    # Two bytes at a time through a table of signs: several times faster than shifting out single bits.
    halves = torch.stack(words, dim=2).to(torch.int32).view(torch.int16).flatten().long().bitwise_and_(0xFFFF)
    signs_PK = _sign_table(dtype, columns_P.device).index_select(0, halves).view(len(columns_P), blocks * BITS)
    return signs_PK[:, :num]


def random_normals(key: tuple[int, int], columns_P: torch.Tensor, num: int, dtype: torch.dtype) -> torch.Tensor:
    """Return normal numbers of variance one, shape (P, num), by the transform of Box and Muller (1958).

    The words (w0, w1, w2, w3) of block b give features 4 b to 4 b + 3: r cos t and r sin t, r^2 = -2 log((w0 + 1/2) / 2^32)
    and t = 2 pi w1 / 2^32; then the same of w2 and w3. The words are equal on every device; the numbers, computed in
    float64, up to the rounding of its logarithm, sine and cosine.
    """
    blocks = -(-num // NORMALS)
    w0, w1, w2, w3 = _words(key, columns_P, blocks)
    radii = torch.stack((w0, w2), dim=2).double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angles = torch.stack((w1, w3), dim=2).double().mul_(2 * math.pi * 2.0**-32)
    normals = torch.stack((angles.cos().mul_(radii), angles.sin().mul_(radii)), dim=3)
    return normals.view(len(columns_P), blocks * NORMALS)[:, :num].to(dtype)


def project_dense(factors: Mapping[str, AbstractFactor], dim: int, draw: Draw, slice_entries: int) -> torch.Tensor:
    """Return the (B, K) features of a dense map of scale 1/sqrt(K): O(B V P K) FLOPs.

    Entries are drawn again for every batch, about ``slice_entries`` at a time. They do not depend on the batch or the
    slice. The rounding of the product does: matrix multiplication is free to choose its order of summation by shape.
    """
    step = max(1, slice_entries // max(dim, BITS))

    def accumulate(features_BK: torch.Tensor, gradients_BW: torch.Tensor, parameter: str, offset: int) -> None:
        for start in range(0, gradients_BW.shape[1], step):
            part_BP = gradients_BW[:, start : start + step]
            first = offset + start
            columns_P = torch.arange(first, first + part_BP.shape[1], device=part_BP.device)
            features_BK.addmm_(part_BP, draw(parameter, columns_P, part_BP.dtype))

    return add_slices(factors, dim, accumulate).mul_(1 / math.sqrt(dim))


def _words(key: tuple[int, int], columns_P: torch.Tensor, num_blocks: int) -> Words:
    """Return the words of all blocks of some columns, (P, blocks) each."""
    column_P1 = columns_P.unsqueeze(1)
    block_1Q = torch.arange(num_blocks, device=columns_P.device).unsqueeze(0)
    return philox((column_P1 & 0xFFFFFFFF, column_P1 >> 32, block_1Q, torch.zeros_like(column_P1)), key)


@lru_cache(maxsize=4)
def _sign_table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the 16 signs of every 16-bit word, lowest bit first, (65536, 16)."""
    words = torch.arange(2**16, device=device).unsqueeze(1)
    return ((words >> torch.arange(16, device=device)) & 1).to(dtype).mul_(2).sub_(1)
