"""Gradients that are held as they are: of vectors, of small parameters, and of everything on a fallback route."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor

if TYPE_CHECKING:
    from ntkpipe.workers.jacobians.factors.outer import OuterFactor


@final
class DenseFactor(AbstractFactor):
    """Holds all (B, V, P) numbers.

    Args:
        gradients_BVP: Flattened in C order.
        shape: Of the parameter.
        deltas_of: A layer at a single position whose deltas these gradients are, those of its bias; their Gram matrix is
            a part of that of the layer's weight.
    """

    def __init__(
        self,
        gradients_BVP: torch.Tensor,
        shape: torch.Size | tuple[int, ...],
        deltas_of: OuterFactor | None = None,
    ) -> None:
        self._deltas_of = deltas_of
        self.gradients_BVP = gradients_BVP
        self._shape = tuple(shape)
        self.num_samples, self.num_vectors, numel = gradients_BVP.shape
        self.num_rows = shape[0] if shape else 1
        self.num_columns = numel // max(1, self.num_rows)

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return them."""
        return [], [self.gradients_BVP]

    @property
    def like(self) -> torch.Tensor:
        """The gradients themselves."""
        return self.gradients_BVP

    @property
    def unfolded_numbers(self) -> int:
        """None: it saw nothing."""
        return 0

    def slices(self, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield column ranges."""
        stacked_BW = self.gradients_BVP.flatten(1)
        for offset in range(0, stacked_BW.shape[1], width):
            yield offset, stacked_BW[:, offset : offset + width]

    def rows_at(self, rows_U: torch.Tensor) -> torch.Tensor:
        """Select them."""
        gradients_BVRQ: torch.Tensor = self.gradients_BVP.unflatten(2, (self.num_rows, self.num_columns))
        return gradients_BVRQ.index_select(2, rows_U)

    def gram(self, other: AbstractFactor) -> torch.Tensor:
        """Multiply entries."""
        if self._deltas_of is not None and isinstance(other, DenseFactor) and other._deltas_of is not None:
            return self._deltas_of.delta_gram(other._deltas_of)
        others_BVP = other.gradients_BVP if isinstance(other, DenseFactor) else other.dense()
        return self.gradients_BVP.flatten(1) @ others_BVP.flatten(1).T

    def squared_norms(self) -> torch.Tensor:
        """Sum squares."""
        return self.gradients_BVP.square().sum(dim=(1, 2))

    def plus(self, other: AbstractFactor) -> DenseFactor:
        """Add entries."""
        return DenseFactor(self.gradients_BVP + other.dense(), self._shape)

    def scaled(self, value: float) -> DenseFactor:
        """Multiply entries."""
        return DenseFactor(self.gradients_BVP * value, self._shape)

    def samples(self, start: int, stop: int) -> DenseFactor:
        """Select rows."""
        return DenseFactor(self.gradients_BVP[start:stop], self._shape)

    def joined(self, others: Sequence[AbstractFactor]) -> DenseFactor:
        """Put them one behind the other."""
        batches = [self.gradients_BVP, *(other.dense() for other in others)]
        return DenseFactor(torch.cat(batches), self._shape)

    def vectors(self, first: int, last: int) -> DenseFactor:
        """Select them."""
        # The deltas of a bias are those of its weight's vectors too, but not of the weight's stack.
        return DenseFactor(self.gradients_BVP[:, first:last], self._shape)

    def per_output(self) -> DenseFactor:
        """Fold the vectors into the batch."""
        return DenseFactor(self.gradients_BVP.flatten(0, 1).unsqueeze(1), self._shape)
