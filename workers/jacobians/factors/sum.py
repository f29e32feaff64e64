"""Gradients of a weight that is both a table of rows and a matrix: an embedding tied to the head of a language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor

if TYPE_CHECKING:
    from ntkpipe.workers.jacobians.factors.rows import RowFactor


@final
class SumFactor(AbstractFactor):
    """The sum of a look-up of rows and a matrix product with the same parameter; neither is ever made dense."""

    def __init__(self, rows: RowFactor, outer: OuterFactor) -> None:
        self._rows = rows
        self._outer = outer
        self.num_samples, self.num_vectors = rows.num_samples, rows.num_vectors
        self.num_rows, self.num_columns = rows.num_rows, rows.num_columns

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return those of both."""
        (ids, deltas), (inputs, others) = self._rows.tensors(), self._outer.tensors()
        return ids + inputs, deltas + others

    @property
    def like(self) -> torch.Tensor:
        """Of either."""
        return self._rows.like

    def parts(self) -> Sequence[AbstractFactor]:
        """Return both."""
        return self._rows, self._outer

    @property
    def unfolded_numbers(self) -> int:
        """Those of the matrix product."""
        return self._outer.unfolded_numbers

    def slices(self, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the slices of both."""
        yield from self._rows.slices(width)
        yield from self._outer.slices(width)

    def rows_at(self, rows_U: torch.Tensor) -> torch.Tensor:
        """Add those of both."""
        return self._rows.rows_at(rows_U) + self._outer.rows_at(rows_U)

    def gram(self, other: AbstractFactor) -> torch.Tensor:
        """Add the Gram matrices of all pairs of parts."""
        grams = [
            mine.gram(theirs) if mine is self._rows else theirs.gram(mine).T
            for mine in self.parts()
            for theirs in other.parts()
        ]
        return torch.stack(grams).sum(dim=0)

    def squared_norms(self) -> torch.Tensor:
        """Add the norms of both and twice their inner product."""
        return self._rows.squared_norms() + self._outer.squared_norms() + 2 * self._rows.cross_norms(self._outer)

    def plus(self, other: AbstractFactor) -> AbstractFactor:
        """Join each part of the other with the part of its kind."""
        rows, outer = self._rows, self._outer
        for part in other.parts():
            if isinstance(part, OuterFactor) and part.transposed == outer.transposed:
                joined: AbstractFactor = outer.plus(part)
                assert isinstance(joined, OuterFactor)
                outer = joined
            elif type(part) is type(rows):
                table = rows.plus(part)
                assert type(table) is type(rows)
                rows = table
            elif isinstance(part, OuterFactor):
                shape = (self.num_rows, self.num_columns)
                return DenseFactor(part.dense() + rows.dense() + outer.dense(), shape)
            else:
                return part.plus(SumFactor(rows, outer))
        return SumFactor(rows, outer)

    def scaled(self, value: float) -> SumFactor:
        """Multiply both."""
        return SumFactor(self._rows.scaled(value), self._outer.scaled(value))

    def samples(self, start: int, stop: int) -> SumFactor:
        """Select them in both."""
        return SumFactor(self._rows.samples(start, stop), self._outer.samples(start, stop))

    def joined(self, others: Sequence[AbstractFactor]) -> SumFactor:
        """Put them one behind the other."""
        same = [other for other in others if isinstance(other, SumFactor)]
        assert len(same) == len(others)
        rows = self._rows.joined([other._rows for other in same])
        return SumFactor(rows, self._outer.joined([other._outer for other in same]))

    def vectors(self, first: int, last: int) -> SumFactor:
        """Select them in both."""
        return SumFactor(self._rows.vectors(first, last), self._outer.vectors(first, last))

    def per_output(self) -> SumFactor:
        """Fold the vectors of both into the batch."""
        return SumFactor(self._rows.per_output(), self._outer.per_output())
