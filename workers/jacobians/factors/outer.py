"""Gradients of a weight matrix that is applied at T positions: sums of outer products."""

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
from torch.nn import functional

from ntkpipe.workers.jacobians.factors.base import AbstractFactor, materialised_gram, slice_width
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.stack import VectorStack
from ntkpipe.workers.jacobians.rates import rates_of

Unfold = Callable[[torch.Tensor], torch.Tensor]


@final
class OuterFactor(AbstractFactor):
    """G_v = sum_t delta_{v,t} a_t^T, of shape (O, I); transposed, for layers that compute x W, G_v = sum_t a_t delta_{v,t}^T.

    Holds B T (I + V O) numbers at the most, instead of B V O I: the inputs of a convolution are unfolded to patches only
    where they are used.

    Args:
        inputs: What the layer saw, (B, T, I); or what ``unfold`` turns into it.
        deltas_BVTO: Gradients at the layer's output, with any strides.
        transposed: Which side of the parameter the deltas are on.
        unfold: Maps inputs (B', ...) to (B', T, I).
        stack: The output vectors that this one shares the layer with, and its number among them.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        deltas_BVTO: torch.Tensor,
        *,
        transposed: bool = False,
        unfold: Unfold | None = None,
        stack: tuple[VectorStack, int] | None = None,
    ) -> None:
        self._inputs = inputs
        self._unfold = unfold
        self._deltas_BVTO = deltas_BVTO
        self._stack = stack
        self._norms_B: torch.Tensor | None = None
        self._delta_gram: tuple[OuterFactor, torch.Tensor] | None = None
        self.transposed = transposed
        self.num_samples, self.num_vectors, self.num_positions, self.num_out = deltas_BVTO.shape
        self.num_in = self.inputs(0, 1).shape[2]
        sides = (self.num_out, self.num_in)
        self.num_rows, self.num_columns = reversed(sides) if transposed else sides

    def tensors(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return them."""
        return [self._inputs], [self._deltas_BVTO]

    @property
    def like(self) -> torch.Tensor:
        """The deltas."""
        return self._deltas_BVTO

    def inputs(self, start: int, stop: int) -> torch.Tensor:
        """Return what the layer saw of some samples, (b, T, I)."""
        part = self._inputs[start:stop]
        return part if self._unfold is None else self._unfold(part)

    def stacked_deltas(self, start: int, stop: int) -> torch.Tensor:
        """Return the deltas of some samples with all output vectors side by side, (b, T, V O)."""
        return self._deltas_BVTO[start:stop].transpose(1, 2).flatten(2)

    @property
    def unfolded_numbers(self) -> int:
        """All patches."""
        return self.num_samples * self.num_positions * self.num_in

    def slices(self, width: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Materialise ranges of rows."""
        inputs_BTI = self.inputs(0, self.num_samples)
        step = max(1, width // self.num_columns)
        if not self.transposed:
            deltas_BDT = self._deltas_BVTO.transpose(2, 3).flatten(1, 2)
            for first in range(0, deltas_BDT.shape[1], step):
                yield first * self.num_columns, (deltas_BDT[:, first : first + step] @ inputs_BTI).flatten(1)
            return
        inputs_BIT = inputs_BTI.transpose(1, 2)
        for vector in range(self.num_vectors):
            for first in range(0, self.num_in, step):
                gradients_BIO = inputs_BIT[:, first : first + step] @ self._deltas_BVTO[:, vector]
                yield (vector * self.num_in + first) * self.num_columns, gradients_BIO.flatten(1)

    def rows_at(self, rows_U: torch.Tensor) -> torch.Tensor:
        """Materialise them."""
        inputs_BTI = self.inputs(0, self.num_samples)
        if self.transposed:
            inputs_B1UT = inputs_BTI.index_select(2, rows_U).transpose(1, 2).unsqueeze(1)
            return inputs_B1UT @ self._deltas_BVTO
        return self._deltas_BVTO.index_select(3, rows_U).transpose(2, 3) @ inputs_BTI.unsqueeze(1)

    def gram(self, other: AbstractFactor) -> torch.Tensor:
        """Use position pairs or materialised gradients, whichever is predicted to take less time."""
        if not isinstance(other, OuterFactor):
            return other.gram(self).T
        if other.transposed != self.transposed:
            return self.dense().flatten(1) @ other.dense().flatten(1).T
        ghost, materialised = self.gram_seconds(other)
        if ghost <= materialised:
            return self.ghost_gram(other)
        if self._stack is not None and other._stack is not None and self._stack[1] == other._stack[1]:
            return self._stack[0].gram(other._stack[0], self._stack[1])
        return materialised_gram(self, other)

    def gram_seconds(self, other: "OuterFactor") -> tuple[float, float]:
        """Return the predicted seconds of a Gram matrix by position pairs and by materialised gradients."""
        rates = rates_of(self.like.device)
        width = self.num_in + self.num_vectors * self.num_out
        pairs = float(self.num_samples * self.num_positions * other.num_samples * other.num_positions)
        ghost = rates.matmul(2 * pairs * width) + rates.passes(2.5 * pairs)
        entries = float(self.num_vectors * self.numel)
        both = (self,) if self is other else (self, other)
        build = sum(rates.matmul(2 * entries * f.num_positions * f.num_samples) for f in both)
        copies = rates.passes(sum(f.num_samples * (entries + f.num_positions * width) for f in both))
        product = rates.matmul(2 * entries * self.num_samples * other.num_samples)
        return ghost, build + copies + product

    def delta_gram(self, other: "OuterFactor") -> torch.Tensor:
        """Return sum_v <delta_v(x), delta_v(x')> of layers at a single position, (B, B').

        It is kept for the second time it is asked for: weight and bias of a layer need the same.
        """
        kept, self._delta_gram = self._delta_gram, None
        if kept is not None and kept[0] is other:
            return kept[1]
        mine, theirs = (factor.stacked_deltas(0, factor.num_samples).flatten(0, 1) for factor in (self, other))
        self._delta_gram = other, mine @ theirs.T
        return self._delta_gram[1]

    def ghost_gram(self, other: "OuterFactor") -> torch.Tensor:
        """Return sum over position pairs of <a_t, a'_t'> <delta_t, delta'_t'>, in tiles of samples that fit a slice.

        No gradient is ever formed: 2 B B' T T' (I + V O) FLOPs.
        """
        if self.num_positions == other.num_positions == 1:
            inputs = self.inputs(0, self.num_samples)[:, 0] @ other.inputs(0, other.num_samples)[:, 0].T
            return inputs.mul_(self.delta_gram(other))
        total = self.like.new_empty(self.num_samples, other.num_samples)
        pairs = self.num_positions * other.num_positions
        # Tiles of about equal sides reuse both operands best.
        side = max(1, int((slice_width(pairs)) ** 0.5))
        for column in range(0, other.num_samples, side):
            columns = slice(column, column + side)
            other_inputs = other.inputs(column, column + side).flatten(0, 1).T
            other_deltas = other.stacked_deltas(column, column + side).flatten(0, 1).T
            # A symmetric matrix is computed once.
            first = column if self is other else 0
            for row in range(first, self.num_samples, side):
                products = self.inputs(row, row + side).flatten(0, 1) @ other_inputs
                products.mul_(self.stacked_deltas(row, row + side).flatten(0, 1) @ other_deltas)
                if pairs > 1:
                    shape = (-1, self.num_positions, total[:, columns].shape[1], other.num_positions)
                    products = products.reshape(shape).sum(dim=(1, 3))
                total[row : row + side, columns] = products
                if self is other and row > column:
                    total[columns, row : row + side] = products.T
        return total

    def squared_norms(self) -> torch.Tensor:
        """Use position pairs of each sample with itself, or materialised gradients, whichever is predicted to be faster."""
        if self._norms_B is not None:
            return self._norms_B
        positions = self.num_positions
        if positions == 1:
            inputs_BT = self.inputs(0, self.num_samples).square().sum(dim=2)
            return (inputs_BT * self._deltas_BVTO.square().sum(dim=(1, 3))).sum(dim=1)
        norms = []
        by_pairs, by_gradients = self.norm_seconds()
        ghost = by_pairs <= by_gradients
        if not ghost and self._stack is not None:
            return self._stack[0].squared_norms(self._stack[1])
        step = slice_width(positions * max(positions if ghost else 0, self.num_in))
        for start in range(0, self.num_samples, step):
            part = self.samples(start, start + step)
            norms.append(part._ghost_norms() if ghost else part._materialised_norms())
        return torch.cat(norms)

    def norm_seconds(self) -> tuple[float, float]:
        """Return the predicted seconds of squared norms by position pairs and by materialised gradients."""
        rates, width = rates_of(self.like.device), self.num_in + self.num_vectors * self.num_out
        if self.num_positions == 1:
            return (rates.passes(self.num_samples * width),) * 2
        pairs = float(self.num_samples * self.num_positions**2)
        entries = float(self.num_samples * self.num_vectors * self.numel)
        copies = rates.passes(self.num_samples * self.num_positions * width)
        by_pairs = rates.matmul(2 * pairs * width) + rates.passes(3 * pairs) + copies
        return by_pairs, rates.matmul(2 * entries * self.num_positions) + rates.passes(entries) + copies

    def remember_norms(self, norms_B: torch.Tensor) -> None:
        """Keep squared norms that were found while the gradients were materialised for something else."""
        self._norms_B = norms_B

    def plus(self, other: AbstractFactor) -> AbstractFactor:
        """Join positions."""
        if not isinstance(other, OuterFactor):
            return other.plus(self)
        if other.transposed != self.transposed:
            shape = (self.num_rows, self.num_columns)
            return DenseFactor(self.dense() + other.dense(), shape)
        inputs_BTI = torch.cat([factor.inputs(0, self.num_samples) for factor in (self, other)], dim=1)
        deltas_BVTO = torch.cat([self._deltas_BVTO, other._deltas_BVTO], dim=2)
        return OuterFactor(inputs_BTI, deltas_BVTO, transposed=self.transposed)

    def among_rows(self, first: int, num_rows: int) -> "OuterFactor":
        """Return the factor of a larger weight of which this one is a run of rows."""
        deltas_BVTO = functional.pad(self._deltas_BVTO, (first, num_rows - self.num_rows - first))
        return OuterFactor(self._inputs, deltas_BVTO, unfold=self._unfold)

    def scaled(self, value: float) -> "OuterFactor":
        """Multiply the deltas."""
        return self.like_this(self._inputs, self._deltas_BVTO * value)

    def vectors(self, first: int, last: int) -> "OuterFactor":
        """Select their deltas."""
        return self.like_this(self._inputs, self._deltas_BVTO[:, first:last])

    def split(self, counts: Sequence[int]) -> list[AbstractFactor]:
        """Let single vectors share products of materialised gradients."""
        found = super().split(counts)
        singles = [number for number, count in enumerate(counts) if count == 1]
        if len(singles) > 1 and not self.transposed:
            stack = VectorStack(self)
            for number in singles:
                found[number] = stack.vector(sum(counts[:number]))
        return found

    def samples(self, start: int, stop: int) -> "OuterFactor":
        """Select them on both sides."""
        return self.like_this(self._inputs[start:stop], self._deltas_BVTO[start:stop])

    def like_this(
        self, inputs: torch.Tensor, deltas_BVTO: torch.Tensor, stack: tuple[VectorStack, int] | None = None
    ) -> "OuterFactor":
        """Return the same layer's factor of other inputs and deltas."""
        return OuterFactor(inputs, deltas_BVTO, transposed=self.transposed, unfold=self._unfold, stack=stack)

    def joined(self, others: Sequence[AbstractFactor]) -> "OuterFactor":
        """Put them one behind the other."""
        same = [other for other in others if isinstance(other, OuterFactor)]
        assert len(same) == len(others)
        if self._stack is not None:
            stack, number = self._stack
            stacks = [other._stack[0] for other in same if other._stack is not None and other._stack[1] == number]
            if len(stacks) == len(same):
                return stack.joined(stacks).vector(number)
        inputs = torch.cat([self._inputs, *(other._inputs for other in same)])
        return self.like_this(inputs, torch.cat([self._deltas_BVTO, *(other._deltas_BVTO for other in same)]))

    def per_output(self) -> "OuterFactor":
        """Repeat the inputs for every vector."""
        inputs = self._inputs.repeat_interleave(self.num_vectors, dim=0)
        return self.like_this(inputs, self._deltas_BVTO.flatten(0, 1).unsqueeze(1))

    def _ghost_norms(self) -> torch.Tensor:
        inputs_BTI, deltas_BTD = self.inputs(0, self.num_samples), self.stacked_deltas(0, self.num_samples)
        products_BTT = (inputs_BTI @ inputs_BTI.transpose(1, 2)).mul_(deltas_BTD @ deltas_BTD.transpose(1, 2))
        return products_BTT.sum(dim=(1, 2))

    def _materialised_norms(self) -> torch.Tensor:
        norms_B = self.like.new_zeros(self.num_samples)
        for _, gradients_BW in self.slices(slice_width(self.num_samples)):
            norms_B += gradients_BW.square().sum(dim=1)
        return norms_B
