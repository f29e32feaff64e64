"""Reading stored features, outputs and diagonals by sample range; only what is committed."""

from typing import Final, final

import numpy as np

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.committed import read_committed
from ntkpipe.storage.grid import Shard, shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Geometry

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
    """Everything a run stores per sample. Memory is O(requested rows)."""

    def __init__(self, chunks: ChunkStore, ledger: Ledger, geometry: Geometry) -> None:
        self._chunks = chunks
        self._ledger = ledger
        self._geometry = geometry

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

    def diagonal(self, kernel: str, split: str, start: int, stop: int, *, member: int | None = None) -> Array:
        """Return entries ``start`` to ``stop`` of a kernel's un-normalised diagonal, (M,); (M, C) for pairs with outputs."""
        prefix = () if member is None else (member,)
        suffix = () if self._geometry.kernel(kernel).width == 1 else (0,)
        return self._rows(layout.diagonal(kernel, split), split, start, stop, prefix, suffix)

    def outputs(self, split: str, start: int, stop: int, *, member: int | None = None) -> Array:
        """Return rows ``start`` to ``stop`` of the network's outputs, (M, C)."""
        return self._rows(layout.output(split), split, start, stop, () if member is None else (member,), (0,))

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

    def _read(self, stage: str, task: str, path: str, position: tuple[int, ...]) -> Array:
        return read_committed(self._chunks, self._ledger, stage, task, path, position)

    def _rows(
        self, path: str, split: str, start: int, stop: int, prefix: tuple[int, ...], suffix: tuple[int, ...]
    ) -> Array:
        rows = self._geometry.shard_rows
        parts: list[Array] = []
        for index in range(start // rows, -(-stop // rows)):
            shard = shard_at(split, index, self._geometry.splits[split].num_samples, rows)
            values = self._read(FEATURES_STAGE, shard.task, path, (*prefix, index, *suffix))[(0,) * len(prefix)]
            parts.append(values[max(start - shard.start, 0) : stop - shard.start])
        if len(parts) == 1 and len(parts[0]) == len(shard):
            return parts[0]
        # Always a copy: a view would keep all of its chunk in memory for as long as whoever asked keeps these rows.
        joined: Array = np.concatenate(parts)
        return joined
