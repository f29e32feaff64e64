"""Gradients after a function of their entries: signs, or a scale for every coordinate."""

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor, materialised_gram, slice_width
from ntkpipe.workers.jacobians.factors.dense import DenseFactor

Entrywise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(gradients (B, V, U, Q) of some rows of the parameter, the rows (U,)) to what stands for them."""


def signs(gradients_BVUQ: torch.Tensor, rows_U: torch.Tensor) -> torch.Tensor:
    """Return -1, 0 or 1."""
    return gradients_BVUQ.sign()


def unchanged(gradients_BVUQ: torch.Tensor, rows_U: torch.Tensor) -> torch.Tensor:
    """Return the gradients, cut as those on the other side are."""
    return gradients_BVUQ


def scaled_by(scale: torch.Tensor) -> Entrywise:
    """Return gradients times a scale of the shape of the parameter."""

    def multiply(gradients_BVUQ: torch.Tensor, rows_U: torch.Tensor) -> torch.Tensor:
        scale_RQ = scale.reshape(scale.shape[0] if scale.dim() else 1, -1)
        return gradients_BVUQ * scale_RQ.index_select(0, rows_U)

    return multiply


@final
class EntrywiseFactor(AbstractFactor):
    """A function of every entry of the gradients of another factor; they are materialised a slice at a time.

    No product of activations gives signs of gradients: whoever needs entries pays for them.

    Args:
        factor: The other factor.
        function: Of its entries.
        floors_B: Entries of a sample that are at most as large as its floor are zero to the function.
    """

    def __init__(self, factor: AbstractFactor, function: Entrywise, floors_B: torch.Tensor | None = None) -> None:
        self._factor = factor
        self._function = function
        self._floors_B = floors_B
        self.num_samples, self.num_vectors = factor.num_samples, factor.num_vectors
        self.num_rows, self.num_columns = factor.num_rows, factor.num_columns
        self.first_vector = factor.first_vector

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return those of the other factor."""
        return self._factor.tensors()

    @property
    def like(self) -> torch.Tensor:
        """That of the other factor."""
        return self._factor.like

    @property
    def unfolded_numbers(self) -> int:
        """Those of the other factor."""
        return self._factor.unfolded_numbers

    def slices(self, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Materialise ranges of whole rows, then one vector after the other."""
        step = max(1, width // (self.num_columns * self.num_vectors))
        for first in range(0, self.num_rows, step):
            rows_U = torch.arange(first, min(first + step, self.num_rows), device=self.like.device)
            gradients_BVUQ = self.rows_at(rows_U)
            for vector in range(self.num_vectors):
                yield (vector * self.num_rows + first) * self.num_columns, gradients_BVUQ[:, vector].flatten(1)

    def rows_at(self, rows_U: torch.Tensor) -> torch.Tensor:
        """Apply the function to those of the other factor."""
        gradients_BVUQ = self._factor.rows_at(rows_U)
        if self._floors_B is not None:
            gradients_BVUQ = gradients_BVUQ * (gradients_BVUQ.abs() > self._floors_B[:, None, None, None])
        return self._function(gradients_BVUQ, rows_U)

    def largest_entries(self) -> torch.Tensor:
        """Return the largest absolute entry of every sample, (B,)."""
        found_B = self.like.new_zeros(self.num_samples)
        for _, gradients_BW in self.slices(slice_width(self.num_samples)):
            found_B = torch.maximum(found_B, gradients_BW.abs().amax(dim=1))
        return found_B

    def gram(self, other: AbstractFactor) -> torch.Tensor:
        """Multiply slices; the other factor must be entrywise too, so that both are cut alike."""
        assert isinstance(other, EntrywiseFactor)
        return materialised_gram(self, other)

    def squared_norms(self) -> torch.Tensor:
        """Add up slices."""
        return inner_products(self, self)

    def plus(self, other: AbstractFactor) -> DenseFactor:
        """Add entries."""
        return DenseFactor(self.dense() + other.dense(), (self.num_rows, self.num_columns))

    def scaled(self, value: float) -> "EntrywiseFactor":
        """Multiply what the function gives."""
        return EntrywiseFactor(
            self._factor, lambda gradients, rows: self._function(gradients, rows) * value, self._floors_B
        )

    def samples(self, start: int, stop: int) -> "EntrywiseFactor":
        """Select them in the other factor."""
        floors_B = None if self._floors_B is None else self._floors_B[start:stop]
        return EntrywiseFactor(self._factor.samples(start, stop), self._function, floors_B)

    def joined(self, others: Sequence[AbstractFactor]) -> "EntrywiseFactor":
        """Join the other factors."""
        same = [other for other in others if isinstance(other, EntrywiseFactor)]
        assert len(same) == len(others)
        floors = [one._floors_B for one in (self, *same)]
        floors_B = torch.cat([floor for floor in floors if floor is not None]) if self._floors_B is not None else None
        return EntrywiseFactor(self._factor.joined([other._factor for other in same]), self._function, floors_B)

    def vectors(self, first: int, last: int) -> "EntrywiseFactor":
        """Select them in the other factor."""
        return EntrywiseFactor(self._factor.vectors(first, last), self._function, self._floors_B)

    def per_output(self) -> "EntrywiseFactor":
        """Fold the vectors of the other factor into the batch."""
        floors_B = None if self._floors_B is None else self._floors_B.repeat_interleave(self.num_vectors)
        return EntrywiseFactor(self._factor.per_output(), self._function, floors_B)


def inner_products(one: EntrywiseFactor, other: EntrywiseFactor) -> torch.Tensor:
    """Return sum_v <G_v(x), H_v(x)> of the same samples, (B,)."""
    width = slice_width(one.num_samples)
    total_B = one.like.new_zeros(one.num_samples)
    for (_, mine_BW), (_, theirs_BW) in zip(one.slices(width), other.slices(width), strict=True):
        total_B += (mine_BW * theirs_BW).sum(dim=1)
    return total_B
