"""The factor stages: the tiles of a Cholesky factor, column by column."""

import json
from typing import final

import numpy as np
import torch

from ntkpipe.configs.solve.tiled import TileCholeskySolve
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.committed import read_committed
from ntkpipe.storage.factor import factor_stage, factor_task
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.objects import put_object
from ntkpipe.storage.records import FactorGeometry
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.solvers.direct.tiled import diagonal_tile, panel_tile, updated_tile
from ntkpipe.workers.solvers.solve import scaled_ridge
from ntkpipe.workers.sources.model import DTYPES
from ntkpipe.workers.tasks import FactorTask, Written


def compute(context: WorkerContext, task: FactorTask) -> Written:
    """Write one tile; nothing once the matrix has been found not to be positive definite.

    Memory is that of four tiles in float64.
    """
    factor = StoredFactor(context.chunks, context.ledger, context.spec.geometry.factor(task.name))
    last = task.column if task.row > task.column else task.column - 1
    if last >= 0 and not factor.reaches(last):
        return Written(chunks=())
    updated_TT = updated_tile(_kernel_tile(context, task, factor), factor, task.row, task.column)
    if task.row != task.column:
        found_TT: torch.Tensor | None = panel_tile(updated_TT, factor.tile(task.column, task.column))
    else:
        found_TT = diagonal_tile(updated_TT)
    if found_TT is None:
        text = json.dumps({"row": task.row * factor.tile_rows, "rows": factor.tile_rows}).encode()
        return Written(chunks=(), objects=(put_object(context.store, layout.factor_failure(task.name), text),))
    values = found_TT.to(factor.dtype).numpy()
    return Written(chunks=(context.chunks.write(layout.factor(task.name), (task.row, task.column), values),))


@final
class StoredFactor:
    """The committed tiles of a factor."""

    def __init__(self, chunks: ChunkStore, ledger: Ledger, geometry: FactorGeometry) -> None:
        self._chunks, self._ledger = chunks, ledger
        self._name = geometry.name
        self.num_tiles = geometry.num_tiles
        self.tile_rows = geometry.tile_rows
        self.dtype = DTYPES[geometry.dtype]

    @property
    def is_complete(self) -> bool:
        """Whether no pivot was negative."""
        return self.reaches(self.num_tiles - 1)

    def reaches(self, column: int) -> bool:
        """Return whether the diagonal tile of a column was written, which it is unless a pivot up to it was negative.

        Raises:
            ChunkNotReadyError: Its task is not committed.
        """
        stage, task = factor_stage(column, column), factor_task(self._name, column, column)
        self._ledger.require(stage, task)
        return bool(self._ledger.receipt(stage, task).chunks)

    def tile(self, row: int, column: int) -> torch.Tensor:
        """Read a tile.

        Raises:
            ChunkNotReadyError: Its task is not committed.
        """
        stage, task = factor_stage(row, column), factor_task(self._name, row, column)
        values = read_committed(self._chunks, self._ledger, stage, task, layout.factor(self._name), (row, column))
        return torch.from_numpy(np.array(values, dtype=np.float64))


def _kernel_tile(context: WorkerContext, task: FactorTask, factor: StoredFactor) -> torch.Tensor:
    """Return a tile of K + ridge I in float64, from the blocks that it covers."""
    geometry = context.spec.geometry
    config = context.spec.config.solve[geometry.solutions.index(task.name)]
    assert isinstance(config, TileCholeskySolve)
    train = geometry.train_split
    matrix = context.matrices.matrix(config.kernel, train, train, cache_bytes=0)
    spans = [
        np.arange(index * factor.tile_rows, min((index + 1) * factor.tile_rows, matrix.size))
        for index in (task.row, task.column)
    ]
    tile_TT = torch.from_numpy(matrix.read(*spans).astype(np.float64))
    if task.row == task.column:
        operator = context.operators.operator(config.kernel, train)
        tile_TT.diagonal().add_(scaled_ridge(operator, config.ridge, config.ridge_scale))
    return tile_TT
