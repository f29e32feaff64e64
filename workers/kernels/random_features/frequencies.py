"""Random frequencies applied to samples: normal ones, dense or structured, and those of heavy-tailed densities."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch

from ntkpipe.configs.kernels.random_features import Coupling, Frequencies
from ntkpipe.workers.kernels.random_features.couplings import coupled_normals
from ntkpipe.workers.kernels.random_features.streams import Stream


class AbstractFrequencies(ABC):
    """M random vectors w_j of dimension D."""

    @abstractmethod
    def project(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return w_j . x as an (N, M) tensor in float64; differentiable with respect to the samples."""


@final
class DenseFrequencies(AbstractFrequencies):
    """Standard normal vectors as a matrix: O(M D) numbers, O(N M D) operations."""

    def __init__(self, coupling: Coupling, seed: int, part: int, num: int, width: int) -> None:
        self.vectors_MD = coupled_normals(coupling, seed, part, num, width)

    def project(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x_ND @ self.vectors_MD.T


@final
class FastfoodFrequencies(AbstractFrequencies):
    """Standard normal vectors in blocks S H G P H B / (sqrt(D) |g|), D rounded up to a power of two.

    O(M) numbers, O(N M log D) operations. H is the Hadamard matrix of +1 and -1, B random signs, P a permutation, G a
    diagonal of normal numbers g, and S chi-distributed lengths (Le, Sarlos, Smola 2013). Row j before S is H_j G times an
    orthogonal matrix: given B and P, a rotation of g with the signs of H_j, so its direction is uniform, and the row
    alone is exactly standard normal. Estimates are therefore unbiased. Two rows of a block share g; their cosine, a
    signed sum of g_i^2 / |g|^2, has about twice the variance 1 / D of independent directions, which up to doubles the
    variance of estimates.
    """

    def __init__(self, seed: int, part: int, num: int, width: int) -> None:
        self._num, self._width = num, width
        self._side = 1 << (width - 1).bit_length()
        blocks, side = -(-num // self._side), self._side
        signs, orders, normals, lengths = (Stream(seed, ("fastfood", part, name)) for name in "BPGS")
        normals_QD = normals.normals(blocks, side)
        self._signs_QD = signs.signs(blocks * side).view(blocks, side)
        self._orders_QD = orders.permutations(blocks, side)
        self._units_QD = normals_QD / normals_QD.norm(dim=1, keepdim=True) / math.sqrt(side)
        self._lengths_QD = lengths.chis(blocks * side, side).view(blocks, side)

    def project(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Apply the factors one after the other to samples filled up with zeros."""
        padded_ND = torch.nn.functional.pad(x_ND, (0, self._side - self._width))
        mixed_NQD = hadamard(padded_ND.unsqueeze(1) * self._signs_QD)
        permuted_NQD = mixed_NQD.gather(2, self._orders_QD.expand_as(mixed_NQD))
        projections_NQD = hadamard(permuted_NQD * self._units_QD) * self._lengths_QD
        return projections_NQD.flatten(1)[:, : self._num]


@final
class StudentFrequencies(AbstractFrequencies):
    """Vectors of a multivariate Student t density: each normal vector over sqrt(chi^2 / freedom) of its own."""

    def __init__(self, normal: AbstractFrequencies, seed: int, num: int, freedom: float) -> None:
        self._normal = normal
        self._divisors_M = Stream(seed, ("student",)).chis(num, freedom) / math.sqrt(freedom)

    def project(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Divide the projections of the normal vectors."""
        return self._normal.project(x_ND) / self._divisors_M


@final
class CauchyFrequencies(AbstractFrequencies):
    """Vectors of independent Cauchy numbers, tan(pi (u - 1/2)) of uniform u."""

    def __init__(self, seed: int, num: int, width: int) -> None:
        positions_MD = (torch.arange(num).unsqueeze(1) << 32) | torch.arange(width)
        uniforms_MD = Stream(seed, ("cauchy",)).uniforms(positions_MD)
        self._vectors_MD = ((uniforms_MD - 0.5) * math.pi).tan()

    def project(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x_ND @ self._vectors_MD.T


def make_frequencies(
    kind: Frequencies, seed: int, num: int, width: int, *, coupling: Coupling = "iid", part: int = 0
) -> AbstractFrequencies:
    """Return ``num`` standard normal frequencies of dimension ``width``; those of different parts are independent."""
    if kind == "fastfood":
        return FastfoodFrequencies(seed, part, num, width)
    return DenseFrequencies(coupling, seed, part, num, width)


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """Return the unscaled Walsh-Hadamard transform along the last axis, of a power of two; differentiable."""
    shape, half = x.shape, 1
    while half < shape[-1]:
        first, second = x.reshape(*shape[:-1], shape[-1] // (2 * half), 2, half).unbind(-2)
        x = torch.stack((first + second, first - second), dim=-2)
        half *= 2
    return x.reshape(shape)
