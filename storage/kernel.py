"""Kernel matrices that are stored: a tile is a chunk."""

from collections.abc import Sequence
from typing import Final, final

import numpy as np

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.committed import LITTLE, CommittedChunks, Scratch
from ntkpipe.storage.grid import Block, pair_name, shard_at
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.picking import Picks, picked
from ntkpipe.storage.records import Geometry, KernelGeometry

KERNEL_STAGE: Final = "kernel"


@final
class StoredMatrix(AbstractMatrix):
    """A stored kernel matrix, or one of its components.

    Args:
        chunks: Of the run; what is held of decoded tiles, it holds.
        geometry: Of the run.
        kernel: Of the matrix.
        row_split: Of its rows.
        column_split: Of its columns.
        member: Position of the model's member.
        group: Position of the component.
    """

    def __init__(
        self,
        chunks: CommittedChunks,
        geometry: Geometry,
        kernel: KernelGeometry,
        row_split: str,
        column_split: str,
        *,
        member: int | None = None,
        group: int | None = None,
    ) -> None:
        pair = pair_name(row_split, column_split)
        self._chunks = chunks
        self._splits = (row_split, column_split)
        self._path = layout.kernel(kernel.name, pair) if group is None else layout.component(kernel.name, pair)
        self._prefix = tuple(index for index in (member, group) if index is not None)
        self._samples = (geometry.splits[row_split].num_samples, geometry.splits[column_split].num_samples)
        self._sample_rows = geometry.block_rows
        self.shape = (self._samples[0] * kernel.width, self._samples[1] * kernel.width)
        self.block_rows = geometry.block_rows * kernel.width
        self.symmetric = kernel.symmetric and row_split == column_split
        self.dtype = np.dtype(geometry.dtype)

    @property
    def num_leaves(self) -> int:
        """Itself."""
        return 1

    def tile(self, row: int, column: int) -> Array:
        """Read a chunk, if the task that wrote it is committed."""
        assert row >= column or not self.symmetric
        chunk = self._chunks.whole(KERNEL_STAGE, self.task(row, column), self._path, (*self._prefix, row, column))
        values: Array = chunk[(0,) * len(self._prefix)]
        return values

    def part(self, row: int, column: int, rows: Picks, columns: Picks, scratch: Scratch) -> Array:
        """Read a chunk, and check all of it; hold it if much of it is wanted, or a little again."""
        assert row >= column or not self.symmetric
        wanted, of = _num_picked(rows) * _num_picked(columns), self.block_rows**2
        return self._chunks.part(
            KERNEL_STAGE,
            self.task(row, column),
            self._path,
            (*self._prefix, row, column),
            lambda chunk: picked(chunk[(0,) * len(self._prefix)], rows, columns),
            scratch,
            is_little=wanted <= LITTLE * of,
        )

    def task(self, row: int, column: int) -> str:
        """Return the block; between a split and itself its task writes both sides of the diagonal."""
        if self._splits[0] == self._splits[1]:
            row, column = max(row, column), min(row, column)
        rows, columns = (
            shard_at(split, index, size, self._sample_rows)
            for split, index, size in zip(self._splits, (row, column), self._samples, strict=True)
        )
        return Block(rows, columns).task

    def missing(self, tasks: Sequence[str]) -> list[str]:
        """Ask the ledger."""
        return self._chunks.ledger.fetch(KERNEL_STAGE, tasks)

    def holds(self, row: int, column: int) -> bool:
        """Ask the cache."""
        return self._chunks.holds(*self._chunk(row, column))

    def version(self, row: int, column: int) -> str:
        """Return the checksum in the receipt."""
        return self._chunks.checksum(*self._chunk(row, column))

    def _chunk(self, row: int, column: int) -> tuple[str, str, str, tuple[int, ...]]:
        if self.symmetric:
            row, column = max(row, column), min(row, column)
        return KERNEL_STAGE, self.task(row, column), self._path, (*self._prefix, row, column)


def _num_picked(picks: Picks) -> int:
    return picks.stop - picks.start if isinstance(picks, slice) else len(picks)
