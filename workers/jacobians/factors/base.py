"""The factor seam: the gradients of one parameter for a batch of samples and all output vectors.

V counts output vectors (C for the trace kernel, 1 for the summed output). A factor stands for the (B, V, P) gradients
G_v(x) of v . f(x). The parameter is seen as a matrix of R rows and Q columns (a weight's output and all of its inputs; a
vector has one column), and coordinates are stacked over output vectors: ``(v R + row) Q + column``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch

SLICE_BYTES = 16 * 2**20
"""Gradients are materialised in slices of about this size, so that no B x P tensor of a large layer exists and what is
computed next finds them in the processor's cache."""


class AbstractFactor(ABC):
    """Gradients of one parameter.

    Attributes:
        num_samples: B.
        num_vectors: V.
        num_rows: R of the parameter seen as a matrix.
        num_columns: Q.
        transposed: Whether the output vectors' gradients lie along the columns: the layer computes x W, not x W^T.
        first_vector: Number of the first output vector, where a pass computes only some of them; it shifts the stacked
            coordinates.
    """

    num_samples: int
    num_vectors: int
    num_rows: int
    num_columns: int
    transposed: bool = False
    first_vector: int = 0

    @property
    def numel(self) -> int:
        """P, the size of the parameter."""
        return self.num_rows * self.num_columns

    @abstractmethod
    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return what it holds: what the layer saw, which may be shared with others, and gradients."""

    @property
    @abstractmethod
    def like(self) -> torch.Tensor:
        """A tensor with the dtype and device of the gradients."""

    @property
    @abstractmethod
    def unfolded_numbers(self) -> int:
        """How many numbers what the layer saw has in the form in which it is multiplied."""

    @abstractmethod
    def slices(self, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield ``(offset, gradients)``, (B, w) each: runs of stacked coordinates; added up they are all gradients.

        Offsets count from the first vector of the factor.

        Args:
            width: About how many coordinates a slice may have; offsets depend on it only.
        """

    @abstractmethod
    def rows_at(self, rows_U: torch.Tensor) -> torch.Tensor:
        """Return the gradients of some rows of the parameter, (B, V, U, Q)."""

    @abstractmethod
    def gram(self, other: "AbstractFactor") -> torch.Tensor:
        """Return sum_v <G_v(x), G_v(x')>, shape (B, B'), for a factor of the same parameter and other samples."""

    @abstractmethod
    def squared_norms(self) -> torch.Tensor:
        """Return sum_v |G_v(x)|^2, shape (B,)."""

    @abstractmethod
    def plus(self, other: "AbstractFactor") -> "AbstractFactor":
        """Return the sum of the gradients of two uses of one parameter, for the same samples and vectors."""

    @abstractmethod
    def scaled(self, value: float) -> "AbstractFactor":
        """Return the gradients times a number."""

    @abstractmethod
    def samples(self, start: int, stop: int) -> "AbstractFactor":
        """Return the factor of a range of samples."""

    @abstractmethod
    def joined(self, others: Sequence["AbstractFactor"]) -> "AbstractFactor":
        """Return the factor of this batch and others behind it, of the same form."""

    @abstractmethod
    def vectors(self, first: int, last: int) -> "AbstractFactor":
        """Return the factor of some of the output vectors."""

    def split(self, counts: Sequence[int]) -> "list[AbstractFactor]":
        """Return factors of runs of output vectors, which may share work; the counts add up to V."""
        if len(counts) == 1:
            return [self]
        starts = list(accumulate(counts, initial=0))
        return [self.vectors(first, last) for first, last in pairwise(starts)]

    @abstractmethod
    def per_output(self) -> "AbstractFactor":
        """Return a factor whose samples are the (sample, output vector) pairs, vectors fastest, with V = 1."""

    def parts(self) -> Sequence["AbstractFactor"]:
        """Return the factors whose sum this is."""
        return (self,)

    def dense(self) -> torch.Tensor:
        """Return all gradients, (B, V, P); for parameters that are small."""
        found = self.like.new_zeros(self.num_samples, self.num_vectors * self.numel)
        for offset, gradients_BW in self.slices(self.num_vectors * self.numel):
            found[:, offset : offset + gradients_BW.shape[1]] += gradients_BW
        return found.view(self.num_samples, self.num_vectors, self.numel)


def slice_width(num_samples: int, itemsize: int = 4) -> int:
    """Return how many coordinates of ``num_samples`` gradients fill one slice."""
    return max(1, SLICE_BYTES // (itemsize * num_samples))


def materialised_gram(one: AbstractFactor, other: AbstractFactor) -> torch.Tensor:
    """Return the Gram matrix from slices of materialised gradients: 2 B B' V P FLOPs, memory O(slice)."""
    width = slice_width(max(one.num_samples, other.num_samples))
    total = one.like.new_zeros(one.num_samples, other.num_samples)
    if one is other:
        for _, gradients_BW in one.slices(width):
            total.addmm_(gradients_BW, gradients_BW.T)
        return total
    for (_, mine_BW), (_, theirs_BW) in zip(one.slices(width), other.slices(width), strict=True):
        total.addmm_(mine_BW, theirs_BW.T)
    return total
