"""Reading stored features, outputs and diagonals by sample range; only what is committed."""

from typing import Any, Final, final

import numpy as np

from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.grid import shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Geometry

FEATURES_STAGE: Final = "features"
PREPARE_STAGE: Final = "prepare"
PREPARE_TASK: Final = "arrays"


@final
class SampleReader:
    """Everything a run stores per sample. Memory is O(requested rows)."""

    def __init__(self, chunks: ChunkStore, ledger: Ledger, geometry: Geometry) -> None:
        self._chunks = chunks
        self._ledger = ledger
        self._geometry = geometry

    def sample_ids(self, split: str) -> list[str]:
        """Return the (N,) ids of a split."""
        self._ledger.require(PREPARE_STAGE, PREPARE_TASK)
        return [str(text) for text in self._chunks.read(layout.sample_id(split), (0,))]

    def labels(self, split: str) -> Array | None:
        """Return the (N,) classes or (N, T) real targets of a split, None without labels."""
        self._ledger.require(PREPARE_STAGE, PREPARE_TASK)
        kind = self._geometry.splits[split].labels
        if kind == "none":
            return None
        return self._chunks.read(layout.label(split), (0,) if kind == "classes" else (0, 0))

    def features(self, kernel: str, split: str, start: int, stop: int, group: int | None = None) -> Array:
        """Return rows ``start`` to ``stop`` of a kernel's features, (M, K); of one group when layerwise."""
        prefix = () if group is None else (group,)
        return self._rows(layout.features(kernel, split), split, start, stop, prefix, (0,))

    def diagonal(self, kernel: str, split: str, start: int, stop: int) -> Array:
        """Return entries ``start`` to ``stop`` of a kernel's un-normalised diagonal, (M,)."""
        return self._rows(layout.diagonal(kernel, split), split, start, stop, (), ())

    def outputs(self, split: str, start: int, stop: int) -> Array:
        """Return rows ``start`` to ``stop`` of the network's outputs, (M, C)."""
        return self._rows(layout.output(split), split, start, stop, (), (0,))

    def _rows(
        self, path: str, split: str, start: int, stop: int, prefix: tuple[int, ...], suffix: tuple[int, ...]
    ) -> Array:
        rows = self._geometry.shard_rows
        parts: list[Any] = []
        for index in range(start // rows, -(-stop // rows)):
            shard = shard_at(split, index, self._geometry.splits[split].num_samples, rows)
            self._ledger.require(FEATURES_STAGE, shard.task)
            values = self._chunks.read(path, (*prefix, index, *suffix))
            values = values[0] if prefix else values
            parts.append(values[max(start - shard.start, 0) : stop - shard.start])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
