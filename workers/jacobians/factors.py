"""The gradient of one parameter for a batch of samples, in the form in which it is cheapest.

V counts output vectors (C for the trace kernel, 1 for the summed output). A factor stands for the (V, B, P) gradients
G_v(x) of v . f(x) with respect to one parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import final

import torch

SLICE_BYTES = 64 * 2**20
"""Gradients are materialised in slices of about this size, so that no B x P tensor of a large layer exists."""


class AbstractFactor(ABC):
    """Gradients of one parameter.

    Attributes:
        num_vectors: V.
        num_samples: B.
        numel: P, the size of the parameter.
    """

    num_vectors: int
    num_samples: int
    numel: int

    @abstractmethod
    def slices(self, vector: int, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield ``(offset, gradients)`` that together are G_v, (B, p) each; offsets depend on ``width`` only.

        Args:
            vector: Which output vector.
            width: About how many coordinates a slice may have.
        """

    @abstractmethod
    def gram(self, other: "AbstractFactor") -> torch.Tensor:
        """Return sum_v <G_v(x), G_v(x')>, shape (B, B'), for a factor of the same parameter and other samples."""

    @abstractmethod
    def plus(self, other: "AbstractFactor") -> "AbstractFactor":
        """Return the sum of the gradients of two uses of one parameter, for the same samples and vectors."""

    @abstractmethod
    def squared_norms(self) -> torch.Tensor:
        """Return sum_v |G_v(x)|^2, shape (B,)."""

    def dense(self) -> torch.Tensor:
        """Return all gradients, (V, B, P); for parameters that are small."""
        vectors = range(self.num_vectors)
        return torch.stack([torch.cat([part for _, part in self.slices(v, self.numel)], dim=1) for v in vectors])

    def materialised_gram(self, other: "AbstractFactor") -> torch.Tensor:
        """Return the Gram matrix from slices of materialised gradients: 2 B B' V P FLOPs, memory O(slice)."""
        width = slice_width(max(self.num_samples, other.num_samples))
        total: torch.Tensor | None = None
        for vector in range(self.num_vectors):
            pairs = zip(self.slices(vector, width), other.slices(vector, width), strict=True)
            for (_, mine), (_, theirs) in pairs:
                product = mine @ theirs.T
                total = product if total is None else total.add_(product)
        assert total is not None
        return total


def slice_width(num_samples: int, itemsize: int = 4) -> int:
    """Return how many coordinates of ``num_samples`` gradients fit a slice."""
    return max(1, SLICE_BYTES // (itemsize * max(1, num_samples)))


@final
class DenseFactor(AbstractFactor):
    """Materialised gradients; for small parameters such as biases, and for the fallback routes."""

    def __init__(self, gradients_VBP: torch.Tensor) -> None:
        self._gradients_VBP = gradients_VBP
        self.num_vectors, self.num_samples, self.numel = gradients_VBP.shape

    def slices(self, vector: int, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield column ranges."""
        for offset in range(0, self.numel, width):
            yield offset, self._gradients_VBP[vector, :, offset : offset + width]

    def gram(self, other: AbstractFactor) -> torch.Tensor:
        """Multiply slices."""
        return self.materialised_gram(other)

    def plus(self, other: AbstractFactor) -> "DenseFactor":
        """Add entries."""
        return DenseFactor(self._gradients_VBP + other.dense())

    def squared_norms(self) -> torch.Tensor:
        """Sum squares."""
        return self._gradients_VBP.square().sum(dim=(0, 2))


@final
class OuterFactor(AbstractFactor):
    """Gradients of a weight matrix that is applied at T positions: G_v = sum_t delta_{v,t} a_t^T.

    Holds B T (d_in + V d_out) numbers instead of B V d_out d_in.
    """

    def __init__(self, inputs_BTI: torch.Tensor, deltas_VBTO: torch.Tensor) -> None:
        self._inputs_BTI = inputs_BTI
        self._deltas_VBTO = deltas_VBTO
        self.num_vectors, self.num_samples, self._num_positions, self._num_out = deltas_VBTO.shape
        self._num_in = inputs_BTI.shape[2]
        self.numel = self._num_out * self._num_in

    def slices(self, vector: int, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Materialise ranges of output channels."""
        step = max(1, width // self._num_in)
        deltas_BOT = self._deltas_VBTO[vector].transpose(1, 2)
        for first in range(0, self._num_out, step):
            gradients_BOI = deltas_BOT[:, first : first + step] @ self._inputs_BTI
            yield first * self._num_in, gradients_BOI.flatten(1)

    def gram(self, other: AbstractFactor) -> torch.Tensor:
        """Use whichever of position pairs and materialised gradients takes fewer multiplications."""
        assert isinstance(other, OuterFactor)
        ghost = self._num_positions * other._num_positions * (self._num_in + self.num_vectors * self._num_out)
        building = (1 / self.num_samples + 1 / other.num_samples) * self._num_positions
        materialised = self.num_vectors * self.numel * (1 + building)
        return self._ghost_gram(other) if ghost <= materialised else self.materialised_gram(other)

    def plus(self, other: AbstractFactor) -> AbstractFactor:
        """Join positions."""
        if not isinstance(other, OuterFactor):
            return other.plus(self)
        inputs_BTI = torch.cat([self._inputs_BTI, other._inputs_BTI], dim=1)
        return OuterFactor(inputs_BTI, torch.cat([self._deltas_VBTO, other._deltas_VBTO], dim=2))

    def squared_norms(self) -> torch.Tensor:
        """Use position pairs of each sample with itself, or materialised gradients, as for the Gram matrix."""
        positions = self._num_positions
        if positions * (self._num_in + self.num_vectors * self._num_out) <= self.num_vectors * self.numel:
            inputs_BTT = self._inputs_BTI @ self._inputs_BTI.transpose(1, 2)
            stacked_BTO = _stack_vectors(self._deltas_VBTO)
            deltas_BTT = stacked_BTO @ stacked_BTO.transpose(1, 2)
            return (inputs_BTT * deltas_BTT).sum(dim=(1, 2))
        norms_B = torch.zeros(self.num_samples, dtype=self._inputs_BTI.dtype, device=self._inputs_BTI.device)
        for vector in range(self.num_vectors):
            for _, gradients_BP in self.slices(vector, slice_width(self.num_samples)):
                norms_B += gradients_BP.square().sum(dim=1)
        return norms_B

    def _ghost_gram(self, other: "OuterFactor") -> torch.Tensor:
        """Return sum over position pairs of <a_t, a'_t'> <delta_t, delta'_t'>, in rows of samples that fit a slice."""
        other_inputs = other._inputs_BTI.flatten(0, 1)
        other_deltas = _stack_vectors(other._deltas_VBTO).flatten(0, 1)
        mine = _stack_vectors(self._deltas_VBTO)
        columns = other.num_samples * other._num_positions
        step = max(1, slice_width(self._num_positions * columns))
        parts = []
        for first in range(0, self.num_samples, step):
            inputs = self._inputs_BTI[first : first + step].flatten(0, 1) @ other_inputs.T
            deltas = mine[first : first + step].flatten(0, 1) @ other_deltas.T
            products = inputs.mul_(deltas)
            if self._num_positions * other._num_positions > 1:
                shape = (-1, self._num_positions, other.num_samples, other._num_positions)
                products = products.reshape(shape).sum(dim=(1, 3))
            parts.append(products)
        return torch.cat(parts)


def _stack_vectors(deltas_VBTO: torch.Tensor) -> torch.Tensor:
    """Return (B, T, V * O), so that one product sums over all output vectors."""
    return deltas_VBTO.permute(1, 2, 0, 3).flatten(2)
