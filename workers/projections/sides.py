"""Random signs on both sides of a weight matrix, and gradients that are multiplied by each side alone.

The gradients of a parameter, stacked over output vectors, are a D x I matrix: D counts (output vector, row), I columns. In
every form they are a sum over positions of outer products d_t a_t^T: a layer's own positions; looked-up rows, where d_t is
a unit vector; and the rows of materialised gradients, where it is one, too. A map that is made of signs B (D x Q) and A
(I x P) needs the products B^T d_t and A^T a_t only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor, slice_width
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.factors.rows import RowFactor
from ntkpipe.workers.jacobians.rates import rates_of
from ntkpipe.workers.philox import stream_key
from ntkpipe.workers.projections.dense import BITS, random_signs

CACHE_BYTES = 256 * 2**20
"""The signs are the same for every batch. For one position of 64 samples drawing takes about as long as multiplying."""

SLICE_ENTRIES = 2**21
"""Signs that are drawn at a time, 8 MiB in float32."""

BLOCK_NUMBERS = 2**21
"""Products of positions with signs that exist at a time, on each side."""

Side = Literal["inputs", "stacked"]


@final
@dataclass(frozen=True, slots=True)
class Sides:
    """How a parameter's gradients are seen; as for a tensor sketch, the side of the deltas is the stacked one."""

    name: str
    first: int
    """Stacked coordinate of the factor's first output vector."""
    stacked: int
    """D: how many there are."""
    inputs: int
    """I."""

    @classmethod
    def of(cls, name: str, factor: AbstractFactor) -> "Sides":
        """Return the sides of a factor."""
        if factor.transposed:
            name, side, inputs = f"{name}^T", factor.num_columns, factor.num_rows
        else:
            side, inputs = factor.num_rows, factor.num_columns
        return cls(name, factor.first_vector * side, factor.num_vectors * side, inputs)


@final
class SignedSides:
    """Draws the signs of both sides of all parameters, and keeps them as far as the budget goes.

    The signs of a side are those of ``random_signs`` with the coordinate as column and the key
    (``key_parts``, name, "inputs" or "stacked"), where the name of a parameter that is used transposed ends with "^T".

    Args:
        key_parts: Names the map.
    """

    def __init__(self, *key_parts: str | int) -> None:
        self._key_parts = key_parts
        self._cache: dict[tuple[object, ...], torch.Tensor] = {}
        self._cached_bytes = 0

    def ways(self, sides: Sides, factor: AbstractFactor, num_inputs: int, num_stacked: int) -> dict[str, float]:
        """Return the predicted seconds of ``positions`` for every way to go."""
        rates, both = rates_of(factor.like.device), num_inputs + num_stacked
        if isinstance(factor, RowFactor):
            looked_up = float(factor.num_samples * factor.num_vectors * factor.num_positions)
            return {
                "rows": rates.matmul(2 * looked_up * sides.inputs * num_inputs) + rates.passes(2 * looked_up * both)
            }
        entries = float(factor.num_samples * sides.stacked * sides.inputs)
        # The rows of a transposed parameter are its inputs, once for every output vector.
        rows = float(factor.num_samples * factor.num_vectors * factor.num_rows)
        gradients = rates.matmul(2 * entries * (num_stacked if factor.transposed else num_inputs))
        gradients += rates.passes(2 * rows * both)
        if not isinstance(factor, OuterFactor):
            return {"gradients": gradients}
        positions, each = float(factor.num_samples * factor.num_positions), sides.inputs + sides.stacked
        gradients += rates.matmul(2 * entries * factor.num_positions) + rates.passes(entries + positions * each)
        apart = 2 * positions * (sides.inputs * num_inputs + sides.stacked * num_stacked)
        return {"sides": rates.matmul(apart) + rates.passes(2 * positions * both), "gradients": gradients}

    def positions(
        self, sides: Sides, factor: AbstractFactor, num_inputs: int, num_stacked: int
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Yield (samples, A^T a_t, B^T d_t) in blocks of bounded memory; summed up they are the gradients.

        Args:
            sides: Of the factor.
            factor: Not a sum of others.
            num_inputs: P, how many signs each coordinate of the inputs has.
            num_stacked: Q, the same of the stacked deltas.

        Returns:
            Shapes (b, t, P) and (b, t, Q); the side of unit vectors has b = 1 where all samples share it.
        """
        if isinstance(factor, RowFactor):
            return self._of_rows(sides, factor, num_inputs, num_stacked)
        if isinstance(factor, OuterFactor):
            ways = self.ways(sides, factor, num_inputs, num_stacked)
            if ways["sides"] <= ways["gradients"]:
                return self._of_layer(sides, factor, num_inputs, num_stacked)
        return self._of_gradients(sides, factor, num_inputs, num_stacked)

    def _of_layer(
        self, sides: Sides, factor: OuterFactor, num_inputs: int, num_stacked: int
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        width = max(num_inputs, num_stacked)
        step, run = _block(factor.num_positions, width)
        for start in range(0, factor.num_samples, step):
            samples = slice(start, min(start + step, factor.num_samples))
            inputs_BTI = factor.inputs(samples.start, samples.stop)
            deltas_BTD = factor.stacked_deltas(samples.start, samples.stop)
            for first in range(0, factor.num_positions, run):
                part = slice(first, first + run)
                yield (
                    samples,
                    self._times(sides, "inputs", inputs_BTI[:, part], 0, num_inputs),
                    self._times(sides, "stacked", deltas_BTD[:, part], sides.first, num_stacked),
                )

    def _of_rows(
        self, sides: Sides, factor: RowFactor, num_inputs: int, num_stacked: int
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Take (vector, look-up) pairs as positions; signs are drawn for the rows that were looked up only."""
        vectors_V1 = torch.arange(factor.num_vectors, device=factor.ids_BT.device).unsqueeze(1) + factor.first_vector
        positions = factor.num_vectors * factor.num_positions
        step, run = _block(positions, max(num_inputs, num_stacked))
        key = self._key(sides, "stacked")
        for start in range(0, factor.num_samples, step):
            samples = slice(start, start + step)
            deltas_BTQ = factor.deltas_BVTQ[samples].flatten(1, 2)
            rows_BT = (factor.ids_BT[samples].unsqueeze(1) + vectors_V1 * factor.num_rows).flatten(1)
            for first in range(0, positions, run):
                part = slice(first, first + run)
                rows_U, places_BT = rows_BT[:, part].unique(return_inverse=True)
                signs_UK = random_signs(key, rows_U, num_stacked, factor.like.dtype)
                yield samples, self._times(sides, "inputs", deltas_BTQ[:, part], 0, num_inputs), signs_UK[places_BT]

    def _of_gradients(
        self, sides: Sides, factor: AbstractFactor, num_inputs: int, num_stacked: int
    ) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Take the rows of materialised gradients as positions; O(B rows) numbers of each block of rows."""
        everything = slice(0, factor.num_samples)
        # Batches of similar size share their blocks, so that cached signs serve all of them.
        similar = max(16, 1 << (factor.num_samples - 1).bit_length())
        step = max(1, BLOCK_NUMBERS // (similar * max(num_inputs, num_stacked)))
        for first, gradients_BRQ in _runs_of_rows(factor, slice_width(similar)):
            for start in range(0, gradients_BRQ.shape[1], step):
                block_BRQ, row = gradients_BRQ[:, start : start + step], first + start
                num = block_BRQ.shape[1]
                if not factor.transposed:
                    signs_1RQ = self._signs(sides, "stacked", sides.first + row, num, num_stacked, block_BRQ).unsqueeze(
                        0
                    )
                    yield everything, self._times(sides, "inputs", block_BRQ, 0, num_inputs), signs_1RQ
                    continue
                vector, row = divmod(row, factor.num_rows)
                signs_1RP = self._signs(sides, "inputs", row, num, num_inputs, block_BRQ).unsqueeze(0)
                offset = sides.first + vector * factor.num_columns
                yield everything, signs_1RP, self._times(sides, "stacked", block_BRQ, offset, num_stacked)

    def _times(self, sides: Sides, side: Side, rows_BTC: torch.Tensor, first: int, width: int) -> torch.Tensor:
        """Return the product of rows with the signs of coordinates ``first`` and after, (B, T, width)."""
        rows_NC = rows_BTC.flatten(0, 1)
        found_NK = rows_NC.new_zeros(len(rows_NC), width)
        step = max(1, SLICE_ENTRIES // (-(-width // BITS) * BITS))
        for start in range(0, rows_NC.shape[1], step):
            part_NC = rows_NC[:, start : start + step]
            found_NK.addmm_(part_NC, self._signs(sides, side, first + start, part_NC.shape[1], width, part_NC))
        return found_NK.view(*rows_BTC.shape[:2], width)

    def _signs(self, sides: Sides, side: Side, start: int, num: int, width: int, like: torch.Tensor) -> torch.Tensor:
        """Return the signs of a run of coordinates, (num, width), from the cache if they are there."""
        key = (sides.name, side, start, num, width, like.dtype, like.device)
        found = self._cache.get(key)
        if found is None:
            columns = torch.arange(start, start + num, device=like.device)
            found = random_signs(self._key(sides, side), columns, width, like.dtype).contiguous()
            # Batches ask for slices in one fixed cycle; dropping the oldest would drop each just before it is asked for.
            if self._cached_bytes + found.nbytes <= CACHE_BYTES:
                self._cache[key] = found
                self._cached_bytes += found.nbytes
        return found

    def _key(self, sides: Sides, side: Side) -> tuple[int, int]:
        return stream_key(*self._key_parts, sides.name, side)


def _block(num_positions: int, width: int) -> tuple[int, int]:
    """Return how many samples, and how many of their positions, have products that fit a block."""
    samples = max(1, BLOCK_NUMBERS // (num_positions * width))
    return samples, num_positions if samples > 1 else max(1, BLOCK_NUMBERS // width)


def _runs_of_rows(factor: AbstractFactor, width: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (first row, gradients (B, R, Q)), rows counted over all output vectors; each run is of one vector if transposed."""
    if isinstance(factor, OuterFactor):
        for offset, gradients_BW in factor.slices(width):
            yield offset // factor.num_columns, gradients_BW.unflatten(1, (-1, factor.num_columns))
        return
    gradients_BVP = factor.gradients_BVP if isinstance(factor, DenseFactor) else factor.dense()
    gradients_BVRQ = gradients_BVP.unflatten(2, (factor.num_rows, factor.num_columns))
    if not factor.transposed:
        yield 0, gradients_BVRQ.flatten(1, 2)
        return
    for vector in range(factor.num_vectors):
        yield vector * factor.num_rows, gradients_BVRQ[:, vector]
