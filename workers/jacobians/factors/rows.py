"""Gradients of an embedding: a few rows of a table that may have millions, never dense in the vocabulary."""

from collections.abc import Iterator, Sequence
from typing import final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor, slice_width
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.factors.sum import SumFactor


@final
class RowFactor(AbstractFactor):
    """G_v = sum_t e_{id_t} delta_{v,t}^T: position t adds its delta to the row of the parameter that it has looked up.

    Args:
        ids_BT: Rows that were looked up.
        deltas_BVTQ: Gradients at what they were looked up for.
        num_rows: R.
    """

    def __init__(self, ids_BT: torch.Tensor, deltas_BVTQ: torch.Tensor, num_rows: int) -> None:
        self.ids_BT = ids_BT
        self.deltas_BVTQ = deltas_BVTQ
        self.num_samples, self.num_vectors, self.num_positions, self.num_columns = deltas_BVTQ.shape
        self.num_rows = num_rows

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return them."""
        return [self.ids_BT], [self.deltas_BVTQ]

    @property
    def like(self) -> torch.Tensor:
        """The deltas."""
        return self.deltas_BVTQ

    @property
    def unfolded_numbers(self) -> int:
        """None: rows are looked up."""
        return 0

    def slices(self, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield one row of the parameter at a time, those that were looked up only."""
        for row in self.ids_BT.unique().split(1):
            gradients_BVQ = self.rows_at(row)[:, :, 0]
            for vector in range(self.num_vectors):
                yield (vector * self.num_rows + int(row)) * self.num_columns, gradients_BVQ[:, vector]

    def rows_at(self, rows_U: torch.Tensor) -> torch.Tensor:
        """Add up the deltas of every position that looked one of them up; the rows must be sorted and differ."""
        num_rows = len(rows_U)
        places_BT = torch.searchsorted(rows_U, self.ids_BT.contiguous()).clamp_(max=num_rows - 1)
        hit_BT = rows_U[places_BT] == self.ids_BT
        found = self.like.new_zeros(self.num_samples * num_rows, self.num_vectors * self.num_columns)
        sample_B1 = torch.arange(self.num_samples, device=self.ids_BT.device).unsqueeze(1)
        flat = (sample_B1 * num_rows + places_BT)[hit_BT]
        found.index_add_(0, flat, self.deltas_BVTQ.transpose(1, 2).flatten(2)[hit_BT])
        return found.view(self.num_samples, num_rows, self.num_vectors, self.num_columns).transpose(1, 2)

    def gram(self, other: AbstractFactor) -> torch.Tensor:
        """Multiply the rows that were looked up, a slice of them at a time: 2 B B' U V Q FLOPs for U different rows."""
        num = max(self.num_samples, other.num_samples)
        step = max(1, slice_width(num) // (self.num_vectors * self.num_columns))
        total = self.like.new_zeros(self.num_samples, other.num_samples)
        for rows_U in self.ids_BT.unique().split(step):
            mine = self.rows_at(rows_U).flatten(1)
            total.addmm_(mine, (mine if other is self else other.rows_at(rows_U).flatten(1)).T)
        return total

    def squared_norms(self) -> torch.Tensor:
        """Use pairs of positions that looked up the same row."""
        norms = []
        for part in self._slices_of_samples(self.num_positions):
            same_B1TT = (part.ids_BT.unsqueeze(2) == part.ids_BT.unsqueeze(1)).unsqueeze(1)
            products_BVTT = part.deltas_BVTQ @ part.deltas_BVTQ.transpose(2, 3)
            norms.append((products_BVTT * same_B1TT).sum(dim=(1, 2, 3)))
        return torch.cat(norms)

    def cross_norms(self, outer: OuterFactor) -> torch.Tensor:
        """Return sum_v <G_v(x), H_v(x)> with the gradients H of another use of the parameter, (B,)."""
        assert not outer.transposed
        norms, start = [], 0
        for part in self._slices_of_samples(outer.num_positions):
            stop = start + part.num_samples
            deltas_BVSO = outer.like[start:stop]
            ids_BVST = part.ids_BT[:, None, None, :].expand(*deltas_BVSO.shape[:3], -1)
            inputs_B1SQ = outer.inputs(start, stop).unsqueeze(1)
            products_BVST = inputs_B1SQ @ part.deltas_BVTQ.transpose(2, 3)
            norms.append((deltas_BVSO.gather(3, ids_BVST) * products_BVST).sum(dim=(1, 2, 3)))
            start = stop
        return torch.cat(norms)

    def _slices_of_samples(self, num_others: int) -> Iterator["RowFactor"]:
        """Yield ranges of samples of which all pairs of positions with ``num_others`` others fit a slice."""
        step = slice_width(self.num_vectors * self.num_positions * num_others)
        for start in range(0, self.num_samples, step):
            yield self.samples(start, start + step)

    def plus(self, other: AbstractFactor) -> AbstractFactor:
        """Join positions with another look-up; keep a sum of two factors with a matrix product on the same parameter."""
        if isinstance(other, RowFactor):
            ids_BT = torch.cat([self.ids_BT, other.ids_BT], dim=1)
            return RowFactor(ids_BT, torch.cat([self.deltas_BVTQ, other.deltas_BVTQ], dim=2), self.num_rows)
        if isinstance(other, OuterFactor) and not other.transposed:
            return SumFactor(self, other)
        if isinstance(other, SumFactor):
            return other.plus(self)
        return DenseFactor(self.dense() + other.dense(), (self.num_rows, self.num_columns))

    def scaled(self, value: float) -> "RowFactor":
        """Multiply the deltas."""
        return RowFactor(self.ids_BT, self.deltas_BVTQ * value, self.num_rows)

    def samples(self, start: int, stop: int) -> "RowFactor":
        """Select them."""
        return RowFactor(self.ids_BT[start:stop], self.deltas_BVTQ[start:stop], self.num_rows)

    def joined(self, others: Sequence[AbstractFactor]) -> "RowFactor":
        """Put them one behind the other."""
        same = [other for other in others if isinstance(other, RowFactor)]
        assert len(same) == len(others)
        ids_BT = torch.cat([self.ids_BT, *(other.ids_BT for other in same)])
        return RowFactor(ids_BT, torch.cat([self.deltas_BVTQ, *(other.deltas_BVTQ for other in same)]), self.num_rows)

    def vectors(self, first: int, last: int) -> "RowFactor":
        """Select their deltas."""
        return RowFactor(self.ids_BT, self.deltas_BVTQ[:, first:last], self.num_rows)

    def per_output(self) -> "RowFactor":
        """Repeat the ids for every vector."""
        ids_BT = self.ids_BT.repeat_interleave(self.num_vectors, dim=0)
        return RowFactor(ids_BT, self.deltas_BVTQ.flatten(0, 1).unsqueeze(1), self.num_rows)
