"""Random frequencies applied to samples: normal ones, dense or structured, and those of heavy-tailed densities."""

import math
from abc import ABC, abstractmethod
from typing import final

import torch

from ntkpipe.configs.kernels.random_features import Coupling, Frequencies
from ntkpipe.workers.hadamard import hadamard
from ntkpipe.workers.kernels.random_features.couplings import coupled_normals
from ntkpipe.workers.kernels.random_features.streams import CPU, Stream


class AbstractFrequencies(torch.nn.Module, ABC):
    """M random vectors w_j of dimension D, as a module without parameters: it moves between devices."""

    @abstractmethod
    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Return w_j . x as an (N, M) tensor in float64; differentiable with respect to the samples."""

    def _keep(self, **numbers: torch.Tensor) -> None:
        """Make random numbers attributes that move with the module; a seed gives them again, so that none is saved."""
        for name, tensor in numbers.items():
            self.register_buffer(name, tensor, persistent=False)


@final
class DenseFrequencies(AbstractFrequencies):
    """Standard normal vectors as a matrix: O(M D) numbers, O(N M D) operations."""

    vectors_MD: torch.Tensor

    def __init__(self, coupling: Coupling, seed: int, part: int, num: int, width: int) -> None:
        super().__init__()
        self._keep(vectors_MD=coupled_normals(coupling, seed, part, num, width))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
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

    signs_QD: torch.Tensor
    orders_QD: torch.Tensor
    units_QD: torch.Tensor
    lengths_QD: torch.Tensor

    def __init__(self, seed: int, part: int, num: int, width: int) -> None:
        super().__init__()
        self._num, self._width = num, width
        self._side = 1 << (width - 1).bit_length()
        blocks, side = -(-num // self._side), self._side
        signs, orders, normals, lengths = (Stream(seed, ("fastfood", part, name)) for name in "BPGS")
        normals_QD = normals.normals(blocks, side)
        self._keep(
            signs_QD=signs.signs(blocks * side).view(blocks, side),
            orders_QD=orders.permutations(blocks, side),
            units_QD=normals_QD / normals_QD.norm(dim=1, keepdim=True) / math.sqrt(side),
            lengths_QD=lengths.chis(blocks * side, side).view(blocks, side),
        )

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Apply the factors one after the other to samples filled up with zeros."""
        padded_ND = torch.nn.functional.pad(x_ND, (0, self._side - self._width))
        mixed_NQD = hadamard(padded_ND.unsqueeze(1) * self.signs_QD)
        permuted_NQD = mixed_NQD.gather(2, self.orders_QD.expand_as(mixed_NQD))
        projections_NQD = hadamard(permuted_NQD * self.units_QD) * self.lengths_QD
        return projections_NQD.flatten(1)[:, : self._num]


@final
class StudentFrequencies(AbstractFrequencies):
    """Vectors of a multivariate Student t density: each normal vector over sqrt(chi^2 / freedom) of its own."""

    divisors_M: torch.Tensor

    def __init__(self, normal: AbstractFrequencies, seed: int, num: int, freedom: float) -> None:
        super().__init__()
        self._normal = normal
        self._keep(divisors_M=Stream(seed, ("student",)).chis(num, freedom) / math.sqrt(freedom))

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Divide the projections of the normal vectors."""
        projections_NM: torch.Tensor = self._normal(x_ND)
        return projections_NM / self.divisors_M


@final
class CauchyFrequencies(AbstractFrequencies):
    """Vectors of independent Cauchy numbers, tan(pi (u - 1/2)) of uniform u."""

    vectors_MD: torch.Tensor

    def __init__(self, seed: int, num: int, width: int) -> None:
        super().__init__()
        rows_M1, columns_D = torch.arange(num, device=CPU).unsqueeze(1), torch.arange(width, device=CPU)
        uniforms_MD = Stream(seed, ("cauchy",)).uniforms((rows_M1 << 32) | columns_D)
        self._keep(vectors_MD=((uniforms_MD - 0.5) * math.pi).tan())

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return x_ND @ self.vectors_MD.T


def make_frequencies(
    kind: Frequencies, seed: int, num: int, width: int, *, coupling: Coupling = "iid", part: int = 0
) -> AbstractFrequencies:
    """Return ``num`` standard normal frequencies of dimension ``width``; those of different parts are independent."""
    if kind == "fastfood":
        return FastfoodFrequencies(seed, part, num, width)
    return DenseFrequencies(coupling, seed, part, num, width)
