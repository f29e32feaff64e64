"""The analyze stage: runs an analysis on what is stored and keeps what it found as small objects."""

import csv
import io
import json
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.storage import layout
from ntkpipe.storage.committed import read_committed
from ntkpipe.storage.objects import put_object
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.workers.analyses.base import Scalar
from ntkpipe.workers.analyses.registry import make_analysis
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.tasks import AnalysisTask, Written

CACHE_BYTES = 256 * 2**20


def compute(context: WorkerContext, task: AnalysisTask) -> Written:
    """Run one analysis; writes ``summary.json`` and, where it has them, ``table.csv`` and ``picture.png``."""
    config = next(analysis for analysis in context.spec.config.analyses if analysis.name == task.name)
    result = make_analysis(config).compute(StoredRunView(context))
    files = {"summary.json": json.dumps(result.summary, indent=1).encode()}
    if result.table:
        files["table.csv"] = _csv(result.table)
    if result.picture is not None:
        files["picture.png"] = result.picture
    return Written(
        (), tuple(put_object(context.store, layout.analysis(task.name, file), data) for file, data in files.items())
    )


@final
class StoredRunView:
    """What analyses see of a run that is being carried out: committed data only."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._geometry = context.spec.geometry

    @property
    def train_split(self) -> str:
        """The split in which solutions live."""
        return self._geometry.train_split

    @property
    def kernel_names(self) -> tuple[str, ...]:
        """The kernel matrices of the run, by reference; those of (sample, output) pairs and without symmetry left out."""
        matrices = self._context.spec.config.matrices
        return tuple(name for name, traits in matrices.items() if traits.symmetric and not traits.per_output)

    @property
    def solution_names(self) -> tuple[str, ...]:
        """The solutions of the run."""
        return self._geometry.solutions

    def num_samples(self, split: str) -> int:
        """N of a split."""
        return self._geometry.splits[split].num_samples

    def sample_ids(self, split: str) -> list[str]:
        """The (N,) ids of a split."""
        return self._context.samples.sample_ids(split)

    def classes(self, split: str) -> npt.NDArray[np.int64] | None:
        """The (N,) integer classes of a split, None when it has no classes."""
        return self._context.samples.labels(split) if self._geometry.splits[split].labels == "classes" else None

    def values(self, split: str) -> npt.NDArray[np.float64] | None:
        """The (N, T) real targets of a split, None when its labels are classes or absent."""
        return self._context.samples.labels(split) if self._geometry.splits[split].labels == "values" else None

    def inputs(self, split: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The model inputs at some positions, read from the data source."""
        return self._context.split(split).raw(positions.tolist()).double().numpy()

    def network_outputs(self, split: str, member: str = "") -> npt.NDArray[np.float64]:
        """The (N, C) outputs of the network, or of one of its members."""
        position = self._geometry.members.index(member) if member else None
        return self._context.samples.outputs(split, 0, self.num_samples(split), member=position).astype(np.float64)

    def predictions(self, solution: str, split: str) -> npt.NDArray[np.float64]:
        """The (N, T) predictions of a stored solution."""
        path = layout.prediction(solution, split)
        return read_committed(self._context.chunks, self._context.ledger, SOLVE_STAGE, solution, path, (0, 0))

    def kernel(
        self,
        name: str,
        row_split: str,
        rows: npt.NDArray[np.int64],
        column_split: str,
        columns: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float64]:
        """Entries of a kernel matrix."""
        matrix = self._context.matrices.matrix(name, row_split, column_split, cache_bytes=CACHE_BYTES)
        return matrix.read(rows, columns).astype(np.float64)

    def diagonal(self, name: str, split: str) -> npt.NDArray[np.float64]:
        """The (N,) kernel of every sample with itself, as normalised as the matrix."""
        return self._context.matrices.diagonal(name, split)


def _csv(table: list[dict[str, Scalar]]) -> bytes:
    buffer = io.StringIO()
    writer: csv.DictWriter[Any] = csv.DictWriter(buffer, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue().encode()
