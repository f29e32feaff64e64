"""Names of the content of what a run stores, made of the checksums in receipts: equal names mean equal bytes."""

from hashlib import sha256
from typing import final

import numpy as np

from ntkpipe.pipeline.query.names import MatrixName, Positions
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.records import Manifest


@final
class Versions:
    """Makes names that change whenever something that an answer is made of does; nothing but receipts is read for them.

    They tell nothing of which rows and columns of it were asked for. Thread safe.

    Raises:
        ChunkNotReadyError: From every method but :meth:`matrix`: something is not committed yet.
    """

    def __init__(self, manifest: Manifest, ledger: Ledger, samples: SampleReader) -> None:
        self._run = f"{manifest.run_id} {manifest.seal}"
        self._ledger = ledger
        self._samples = samples

    def matrix(self, name: MatrixName, matrix: AbstractMatrix, rows: Positions, columns: Positions) -> str:
        """Return the name of some entries; of which tiles are not committed is part of it.

        Raises:
            ChunkNotReadyError: Something else than a tile is not committed, such as a diagonal that divides entries.
        """
        tiles = matrix.tiles(rows, columns)
        missing = matrix.require(tiles, missing_as_nan=True)
        parts = ["missing" if matrix.task(*tile) in missing else matrix.version(*tile) for tile in tiles]
        return self._digest(repr(name), repr(tiles), *parts)

    def samples(self, split: str, rows: Positions | None = None) -> str:
        """Return the name of features, outputs and diagonals of some samples of a split, all by default."""
        at = "" if rows is None else repr(np.unique(rows // self._samples.shard_rows).tolist())
        return self._digest(split, at, self._samples.version(split, rows))

    def prepared(self) -> str:
        """Return the name of all ids and labels."""
        return self._digest(self._samples.prepared_version())

    def task(self, stage: str, task: str) -> str:
        """Return the name of everything that a task has written."""
        self._ledger.require(stage, task)
        return self._digest(*(record.crc32c for record in self._ledger.receipt(stage, task).written))

    def joined(self, *versions: str) -> str:
        """Return the name of several things together."""
        return self._digest(*versions)

    def _digest(self, *parts: str) -> str:
        return sha256("\n".join((self._run, *parts)).encode()).hexdigest()[:32]
