"""Reading stored features, outputs and diagonals by sample range; only what is committed."""

from functools import partial
from typing import Final, final

import numpy as np

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.committed import LITTLE, CommittedChunks, Scratch
from ntkpipe.storage.grid import Shard, num_chunks, shard_at, shards
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.picking import Picks, Positions, grouped, picked
from ntkpipe.storage.records import Geometry
from ntkpipe.storage.tile_cache import TileCache

MOMENTS_STAGE: Final = "moments"
FEATURES_STAGE: Final = "features"
DERIVE_PREFIX: Final = "derive-"
PREPARE_STAGE: Final = "prepare"
PREPARE_TASK: Final = "arrays"
ORIGIN_TASK: Final = "origin"
"""Of the preparation too: all has been taken over from another run that can be."""


def derive_stage(level: int) -> str:
    """Return the stage of the passes that derived kernels of a level need."""
    return f"{DERIVE_PREFIX}{level}"


def derive_task(kernel: str, shard: Shard) -> str:
    """Return the id of the task that passes over the rows of a shard."""
    return f"{kernel}/{shard.task}"


@final
class SampleReader:
    """Everything a run stores per sample. Memory is O(requested rows). Thread safe.

    Args:
        chunks: Of the run.
        ledger: Of the run.
        geometry: Of the run.
        cache: Where decoded chunks are held; None holds none. Every array that is returned is the caller's own.

    Attributes:
        shard_rows: Samples in a chunk.
    """

    def __init__(
        self, chunks: ChunkStore, ledger: Ledger, geometry: Geometry, *, cache: TileCache | None = None
    ) -> None:
        self._chunks = CommittedChunks(chunks, ledger, cache)
        self._ledger = ledger
        self._geometry = geometry
        self._is_own = cache is None
        self.shard_rows = geometry.shard_rows

    def sample_ids(self, split: str) -> list[str]:
        """Return the (N,) ids of a split."""
        return [str(text) for text in self._read(PREPARE_STAGE, PREPARE_TASK, layout.sample_id(split), (0,))]

    def labels(self, split: str) -> Array | None:
        """Return the (N,) classes or (N, T) real targets of a split, None without labels."""
        self._ledger.require(PREPARE_STAGE, PREPARE_TASK)
        kind = self._geometry.splits[split].labels
        if kind == "none":
            return None
        position = (0,) if kind == "classes" else (0, 0)
        return self._read(PREPARE_STAGE, PREPARE_TASK, layout.label(split), position)

    def features(
        self, kernel: str, split: str, start: int, stop: int, *, member: int | None = None, group: int | None = None
    ) -> Array:
        """Return rows ``start`` to ``stop`` of a kernel's features, (M, K); of one member, and of one group."""
        prefix = tuple(index for index in (member, group) if index is not None)
        return self._rows(layout.features(kernel, split), split, start, stop, prefix, (0,))

    def features_at(
        self, kernel: str, split: str, rows: Positions, *, member: int | None = None, group: int | None = None
    ) -> Array:
        """Return some rows of a kernel's features, (M, K), reading the chunks that hold any of them."""
        prefix = tuple(index for index in (member, group) if index is not None)
        return self._rows_at(layout.features(kernel, split), split, rows, prefix)

    def diagonal(self, kernel: str, split: str, start: int, stop: int, *, member: int | None = None) -> Array:
        """Return entries ``start`` to ``stop`` of a kernel's un-normalised diagonal, (M,); (M, C) for pairs with outputs."""
        prefix = () if member is None else (member,)
        suffix = () if self._geometry.kernel(kernel).width == 1 else (0,)
        return self._rows(layout.diagonal(kernel, split), split, start, stop, prefix, suffix)

    def outputs(self, split: str, start: int, stop: int, *, member: int | None = None) -> Array:
        """Return rows ``start`` to ``stop`` of the network's outputs, (M, C)."""
        return self._rows(layout.output(split), split, start, stop, () if member is None else (member,), (0,))

    def outputs_at(self, split: str, rows: Positions, *, member: int | None = None) -> Array:
        """Return some rows of the network's outputs, (M, C)."""
        return self._rows_at(layout.output(split), split, rows, () if member is None else (member,))

    def statistic(self, kernel: str, split: str, start: int, stop: int) -> Array:
        """Return rows ``start`` to ``stop`` of what a derived kernel keeps per sample, (M, S)."""
        shape, step = self._geometry.kernel(kernel), self._geometry.block_rows
        parts = []
        for index in range(start // step, -(-stop // step)):
            shard = shard_at(split, index, self._geometry.splits[split].num_samples, step)
            stage, task = derive_stage(shape.level), derive_task(kernel, shard)
            values = self._read(stage, task, layout.statistic(kernel, split), (index, 0))
            parts.append(values[max(start - shard.start, 0) : stop - shard.start])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def moments(self, kernel: str, *, member: int | None = None) -> Array:
        """Return the (P,) second moments of a kernel's gradients, parameters one behind the other."""
        position = (0,) if member is None else (member, 0)
        values = self._read(MOMENTS_STAGE, kernel, layout.moments(kernel), position)
        return values if member is None else values[0]

    def version(self, split: str, rows: Positions | None = None) -> str:
        """Return a text that is another one whenever features, outputs or diagonals of some samples are; all by default.

        Raises:
            ChunkNotReadyError: They are not committed.
        """
        step, num_samples = self._geometry.shard_rows, self._geometry.splits[split].num_samples
        blocks = (
            range(num_chunks(num_samples, step)) if rows is None else np.flatnonzero(np.bincount(rows // step)).tolist()
        )
        tasks = [shard_at(split, block, num_samples, step).task for block in blocks]
        self._ledger.fetch(FEATURES_STAGE, tasks)
        return "-".join(self._ledger.sums.all_of(FEATURES_STAGE, task) for task in tasks)

    def prepared_version(self) -> str:
        """Return a text that is another one whenever ids or labels are.

        Raises:
            ChunkNotReadyError: They are not committed.
        """
        return self._ledger.sums.all_of(PREPARE_STAGE, PREPARE_TASK)

    def statistic_version(self, kernel: str, split: str) -> str:
        """Return a text that is another one whenever what a derived kernel keeps per sample of a split is."""
        stage, step = derive_stage(self._geometry.kernel(kernel).level), self._geometry.block_rows
        tasks = [derive_task(kernel, shard) for shard in shards(split, self._geometry.splits[split].num_samples, step)]
        self._ledger.fetch(stage, tasks)
        return "-".join(self._ledger.sums.all_of(stage, task) for task in tasks)

    def _read(self, stage: str, task: str, path: str, position: tuple[int, ...]) -> Array:
        values = self._chunks.whole(stage, task, path, position)
        return values if values.flags.writeable else values.copy()

    def _rows(
        self, path: str, split: str, start: int, stop: int, prefix: tuple[int, ...], suffix: tuple[int, ...]
    ) -> Array:
        rows = self._geometry.shard_rows
        parts: list[Array] = []
        for index in range(start // rows, -(-stop // rows)):
            shard = shard_at(split, index, self._geometry.splits[split].num_samples, rows)
            values = self._chunks.whole(FEATURES_STAGE, shard.task, path, (*prefix, index, *suffix))
            parts.append(values[(0,) * len(prefix)][max(start - shard.start, 0) : stop - shard.start])
        if self._is_own and len(parts) == 1 and len(parts[0]) == len(shard):
            return parts[0]
        # Always a copy: a view would keep all of its chunk in memory for as long as whoever asked keeps these rows.
        joined: Array = np.concatenate(parts)
        return joined

    def _rows_at(self, path: str, split: str, rows: Positions, prefix: tuple[int, ...]) -> Array:
        """Return rows in any order of an array with one further axis, each chunk read once."""
        groups, scratch, parts = grouped(rows, self._geometry.shard_rows), Scratch(), []
        num_samples = self._geometry.splits[split].num_samples
        for group in groups:
            shard = shard_at(split, group.block, num_samples, self._geometry.shard_rows)
            part = self._chunks.part(
                FEATURES_STAGE,
                shard.task,
                path,
                (*prefix, group.block, 0),
                partial(_picked_rows, len(prefix), group.inside),
                scratch,
                is_little=group.num <= LITTLE * len(shard),
            )
            parts.append(part)
        joined: Array = np.concatenate(parts)
        return joined if groups.restore is None else joined.take(groups.restore, axis=0)


def _picked_rows(num_axes: int, rows: Picks, chunk: Array) -> Array:
    return picked(chunk[(0,) * num_axes], rows, slice(None))
