"""Output vectors of several kernels through one layer: what they have in common is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final
from weakref import ref

import torch

from ntkpipe.workers.jacobians.factors.base import slice_width

if TYPE_CHECKING:
    from ntkpipe.workers.jacobians.factors.outer import OuterFactor


@final
class VectorStack:
    """A layer's factor of several output vectors, each of which is a kernel's of its own.

    Products of materialised gradients are found for all vectors at once, because unfolding the inputs of a convolution
    takes longer than multiplying them with one vector's deltas. They are kept until another product is asked for.

    Args:
        factor: Of all vectors.
    """

    def __init__(self, factor: OuterFactor) -> None:
        self._factor = factor
        self._joined: tuple[tuple[VectorStack, ...], VectorStack] | None = None
        self._grams: tuple[ref[VectorStack], torch.Tensor] | None = None
        self._norms_VB: torch.Tensor | None = None

    def vector(self, number: int) -> OuterFactor:
        """Return the factor of one vector, which knows that it is one of several."""
        factor = self._factor
        inputs, deltas_BVTO = factor.tensors()[0][0], factor.like[:, number : number + 1]
        return factor.like_this(inputs, deltas_BVTO, stack=(self, number))

    def joined(self, others: Sequence[VectorStack]) -> VectorStack:
        """Return the stack of this batch and others behind it, the same one for every vector that asks."""
        if self._joined is None or self._joined[0] != tuple(others):
            self._joined = tuple(others), VectorStack(self._factor.joined([other._factor for other in others]))
        return self._joined[1]

    def gram(self, other: VectorStack, number: int) -> torch.Tensor:
        """Return the (B, B') product of the gradients of one vector."""
        # A weak reference: neither does the other stack live longer for it, nor is this one a cycle with itself.
        if self._grams is None or self._grams[0]() is not other:
            self._grams = ref(other), self._products(other)
        return self._grams[1][number]

    def squared_norms(self, number: int) -> torch.Tensor:
        """Return the (B,) squared norms of the gradients of one vector."""
        if self._norms_VB is None:
            width = slice_width(self._factor.num_samples)
            slices = (gradients_BVW.square().sum(dim=2).T for gradients_BVW in self._slices(width))
            self._norms_VB = torch.stack(list(slices)).sum(dim=0)
        return self._norms_VB[number]

    def _products(self, other: VectorStack) -> torch.Tensor:
        one, two = self._factor, other._factor
        width = slice_width(max(one.num_samples, two.num_samples))
        total_VBB = one.like.new_zeros(one.num_vectors, one.num_samples, two.num_samples)
        if self is other:
            for mine_BVW in self._slices(width):
                total_VBB.baddbmm_(mine_BVW.transpose(0, 1), mine_BVW.permute(1, 2, 0))
            return total_VBB
        for mine_BVW, theirs_BVW in zip(self._slices(width), other._slices(width), strict=True):
            total_VBB.baddbmm_(mine_BVW.transpose(0, 1), theirs_BVW.permute(1, 2, 0))
        return total_VBB

    def _slices(self, width: int) -> Iterator[torch.Tensor]:
        """Materialise ranges of rows of all vectors, (B, V, w), about ``width`` coordinates at a time."""
        factor = self._factor
        inputs_BTI = factor.inputs(0, factor.num_samples)
        step = max(1, width // (factor.num_columns * factor.num_vectors))
        for first in range(0, factor.num_rows, step):
            deltas_BDT = factor.like[..., first : first + step].transpose(2, 3).flatten(1, 2)
            gradients_BDI = deltas_BDT @ inputs_BTI
            yield gradients_BDI.view(factor.num_samples, factor.num_vectors, -1)
