"""A subsampled randomized Hadamard transform."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.workers.hadamard import hadamard
from ntkpipe.workers.jacobians.factors.base import AbstractFactor, slice_width
from ntkpipe.workers.jacobians.rates import rates_of
from ntkpipe.workers.philox import philox, stream_key
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.dense import random_signs

VERSION = 1


@final
class SubsampledHadamardProjection(AbstractProjection):
    """Random signs, a Hadamard transform, random rows of it, and signs again (Ailon, Chazelle 2009; Tropp 2011).

    The W = K / 2 features of a half take, of the P gradients of each parameter and output vector, padded to a power of
    two N,

        feature k = e_k sum_i H[r_k, i] s_i g_i / sqrt(K),        H[r, i] = (-1)^popcount(r and i).

    The rows r_k all differ. Where W exceeds N, as many whole transforms as fit, each with signs s of its own, are followed
    by one of which m = W mod N rows are taken. Every (parameter, output vector) has signs, rows and feature signs e of its
    own: without e, coordinate 0, which enters every row with one sign, would add up coherently between parameters.

    Given the signs, the mean over all rows of a transform is <a, b> exactly (Parseval); over the signs, a single row has
    the variance L = |a|^2 |b|^2 + <a, b>^2 - 2 sum_p a_p^2 b_p^2 of dense signs. Rows without replacement hence give each
    parameter and output vector, in one half, the exact law

        Var <Sa, Sb> = L / W  (m / W) (N - m) / (N - 1),        m = W if W < N;  0 if N divides W.

    Terms between parameters and vectors are as for dense signs, so that the variance of a sum over all of them is that of
    dense signs less what each gains alone: a factor of about 1 - W / N, nothing for large layers.

    For output vector v, coordinate i of transform t has bit i mod 32 of word (i mod 128) // 32 of the counter
    (t, v, i // 128); feature signs are laid out in the same way, with t = 0; rows are the first that differ among the words
    of the counters (0, v), (1, v), ..., modulo N.

    A transform needs the whole gradient of a parameter at once: memory is O(chunk V N) for chunks of samples that fill a
    slice, but at least one sample, also for embeddings of which a few rows were looked up. Takes O(B V N log N).
    """

    def __init__(self, *, dim: int, seed: int) -> None:
        self.dim = dim
        self._seed = seed

    def project(self, factors: Mapping[str, AbstractFactor]) -> torch.Tensor:
        """Transform chunks of samples, one parameter after the other."""
        first = next(iter(factors.values()))
        features_BK = first.like.new_zeros(first.num_samples, self.dim)
        for name, factor in factors.items():
            if factor.numel:  # a transform has at least one coordinate
                self._add(features_BK, name, factor)
        return features_BK.mul_(1 / math.sqrt(self.dim))

    def ways(self, factor: AbstractFactor) -> dict[str, float]:
        """Materialise gradients: two Hadamard transforms of each, at about the price of Fourier transforms."""
        rates, length = rates_of(factor.like.device), _padded(factor.numel)
        num = float(factor.num_samples * factor.num_vectors) * -(-self.dim // 2 // length)
        return {"gradients": 2 * rates.transforms(num, length)}

    def fingerprint(self) -> str:
        """Name the operator, its version and its settings."""
        return f"srht-v{VERSION};dim={self.dim};seed={self._seed}"

    def _add(self, features_BK: torch.Tensor, parameter: str, factor: AbstractFactor) -> None:
        halves = [self._draw(half, parameter, factor) for half in range(2)]
        chunk = slice_width(halves[0].num_numbers)
        for start in range(0, factor.num_samples, chunk):
            gradients_BVP = factor.samples(start, start + chunk).dense()
            features_BK[start : start + chunk] += torch.cat([half.apply(gradients_BVP) for half in halves], dim=1)

    def _draw(self, half: int, parameter: str, factor: AbstractFactor) -> "_Half":
        width, length, device = self.dim // 2, _padded(factor.numel), factor.like.device
        coordinate_key, row_key, feature_key = (
            stream_key("srht", VERSION, self._seed, half, parameter, role)
            for role in ("coordinates", "rows", "features")
        )
        vectors_V1 = torch.arange(factor.num_vectors, device=device).unsqueeze(1) + factor.first_vector
        whole = width // length * length
        rows_VW = torch.arange(width, device=device).repeat(factor.num_vectors, 1)
        if whole < width:
            rows_VW[:, whole:] = _distinct_rows(row_key, vectors_V1, width - whole, length) + whole
        columns_V1 = vectors_V1 << 32
        columns_VT = columns_V1 + torch.arange(-(-width // length), device=device)
        signs_CP = random_signs(coordinate_key, columns_VT.flatten(), factor.numel, factor.like.dtype)
        signs_VW = random_signs(feature_key, columns_V1.flatten(), width, factor.like.dtype)
        return _Half(length, signs_CP.unflatten(0, columns_VT.shape), rows_VW, signs_VW)


@dataclass(frozen=True, slots=True)
class _Half:
    """Half of the features of one parameter."""

    length: int
    """N, of a transform."""
    signs_VTP: torch.Tensor
    """Of the coordinates, for each transform."""
    rows_VW: torch.Tensor
    """Which row each feature takes, counted over all transforms."""
    feature_signs_VW: torch.Tensor
    """Of the features."""

    @property
    def num_numbers(self) -> int:
        """How many numbers the transforms of one sample are."""
        vectors, transforms, _ = self.signs_VTP.shape
        return vectors * transforms * self.length

    def apply(self, gradients_BVP: torch.Tensor) -> torch.Tensor:
        """Return the unscaled features."""
        signed_BVTP = gradients_BVP.unsqueeze(2) * self.signs_VTP
        padded_BVTN = torch.nn.functional.pad(signed_BVTP, (0, self.length - signed_BVTP.shape[3]))
        transformed_BVN = hadamard(padded_BVTN.flatten(0, 2)).view(*gradients_BVP.shape[:2], -1)
        taken_BVW = transformed_BVN.gather(2, self.rows_VW.expand(len(gradients_BVP), -1, -1))
        return taken_BVW.mul_(self.feature_signs_VW).sum(dim=1)


def _padded(num: int) -> int:
    """Return the next power of two."""
    return 1 << (max(1, num) - 1).bit_length()


def _distinct_rows(key: tuple[int, int], vectors_V1: torch.Tensor, num: int, size: int) -> torch.Tensor:
    """Return the first ``num`` values that differ of each vector's endless stream of uniform numbers below a power of two."""
    assert size <= 2**32, "words have 32 bits"
    counters = -(-num // 2)
    while True:
        counter_1C = torch.arange(counters, device=vectors_V1.device).unsqueeze(0)
        zero = torch.zeros_like(counter_1C)
        stream_VS = torch.stack(philox((counter_1C, vectors_V1, zero, zero), key), dim=2).flatten(1) & (size - 1)
        values_VS, order_VS = stream_VS.sort(dim=1, stable=True)
        first_VS = torch.ones_like(values_VS, dtype=torch.bool)
        first_VS[:, 1:] = values_VS[:, 1:] != values_VS[:, :-1]
        new_VS = torch.empty_like(first_VS).scatter_(1, order_VS, first_VS)
        found_VS = new_VS.cumsum(dim=1)
        if bool((found_VS[:, -1] >= num).all()):
            return stream_VS[new_VS & (found_VS <= num)].view(-1, num)
        counters *= 2
