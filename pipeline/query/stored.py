"""Reading a run from its own storage. Needs neither torch nor Ray."""

from typing import final

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.estimates import standard_errors
from ntkpipe.pipeline.query.names import Doubles, MatrixName, Missing, Nearest, Positions, Spectrum
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.status import RunStatus, read_status
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.committed import read_committed
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.kernel import AbstractMatrix
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrices import MatrixReader
from ntkpipe.storage.objects import read_npy, read_object
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.solutions import SOLVE_STAGE, SolutionRecord
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.tasks import ANALYZE_STAGE


@final
class StoredRunReader(AbstractRunReader):
    """A run in a store. Only committed data is ever returned.

    Attributes:
        samples: Reads what is stored per sample.
    """

    def __init__(self, store: AbstractStore) -> None:
        self.url = store.url
        self.manifest = Manifest.read(store)
        self._store = store
        self._chunks = ChunkStore(store, read_only=True, specs=array_specs(self.manifest.geometry))
        self._ledger = Ledger(store)
        self.samples = SampleReader(self._chunks, self._ledger, self.manifest.geometry)
        self._matrices = MatrixReader(self._chunks, self._ledger, self.manifest.geometry)

    def status(self) -> RunStatus:
        """Read it from receipts and the lock."""
        return read_status(self._store, self.manifest)

    def ids(self, split: str) -> list[str]:
        """Read them."""
        return self.samples.sample_ids(split)

    def labels(self, split: str) -> Array | None:
        """Read them."""
        return self.samples.labels(split)

    def outputs(self, split: str, member: str | None, rows: Positions) -> Array:
        """Read the range that spans the rows."""
        geometry = self.manifest.geometry
        if not len(rows):
            return np.empty((0, geometry.num_outputs), geometry.dtype)
        position = None if member is None else geometry.members.index(member)
        start, stop = int(rows.min()), int(rows.max()) + 1
        return self.samples.outputs(split, start, stop, member=position)[rows - start]

    def entries(self, name: MatrixName, rows: Positions, columns: Positions, missing: Missing) -> Array:
        """Read each tile once."""
        return self.matrix(name).read(rows, columns)

    def matrix(self, name: MatrixName) -> AbstractMatrix:
        """Return a matrix, to be read tile by tile."""
        component = name.layers[0] if name.layers else None
        return self._matrices.matrix(name.kernel, name.rows, name.columns, component=component)

    def errors(self, name: MatrixName, rows: Positions, columns: Positions) -> Doubles:
        """Compare the two halves of the features."""
        return standard_errors(self, name, rows, columns)

    def features(self, kernel: str, split: str, rows: Positions) -> Array:
        """Read the range that spans the rows."""
        geometry = self.manifest.geometry
        shape, member = geometry.matrix(kernel)
        groups: list[int | None] = list(range(len(shape.groups))) or [None]
        start, stop = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        parts = [
            self.samples.features(shape.name, split, start, stop, member=member, group=group)[rows - start]
            if len(rows)
            else np.empty((0, shape.feature_dim or 0), geometry.dtype)
            for group in groups
        ]
        return np.stack(parts) if shape.groups else parts[0]

    def diagonal(self, kernel: str, split: str) -> Array:
        """Read it; of a derived kernel, make it from those of its parents."""
        geometry = self.manifest.geometry
        shape, member = geometry.matrix(kernel)
        if shape.derived is None:
            return self.samples.diagonal(shape.name, split, 0, geometry.splits[split].num_samples, member=member)
        return self._matrices.diagonal(kernel, split)

    def nearest(
        self, name: MatrixName, rows: Positions, k: int, *, opposed: bool = False, label: int | None = None
    ) -> Nearest:
        """Sort whole rows."""
        values = self.entries(name, rows, np.arange(self.manifest.geometry.splits[name.columns].num_samples), "raise")
        keys = values.astype(np.float64) * (1 if opposed else -1)
        if name.rows == name.columns:
            keys[np.arange(len(rows)), rows] = np.inf
        order = np.argsort(keys, axis=1, kind="stable")[:, : min(k, int(np.isfinite(keys).sum(axis=1).min()))]
        return Nearest(order, np.take_along_axis(values.astype(np.float64), order, axis=1))

    def spectrum(self, name: MatrixName, max_samples: int) -> Spectrum:
        """Decompose a dense matrix."""
        raise ConfigError("not yet")

    def solution(self, name: str) -> Array:
        """Read it."""
        return read_committed(self._chunks, self._ledger, SOLVE_STAGE, name, layout.solution(name), (0, 0))

    def solution_record(self, name: str) -> SolutionRecord:
        """Read it."""
        key = layout.solution_record(name)
        return SolutionRecord.parse(self._object(SOLVE_STAGE, name, key), f"{self.url}/{key}")

    def solution_extra(self, name: str, what: str) -> Array:
        """Read it."""
        return read_npy(self._object(SOLVE_STAGE, name, layout.solution_extra(name, what)))

    def predictions(self, name: str, split: str) -> Array:
        """Read them."""
        return read_committed(self._chunks, self._ledger, SOLVE_STAGE, name, layout.prediction(name, split), (0, 0))

    def attributions(self, solution: str, split: str, rows: Positions) -> Doubles:
        """Multiply rows of the kernel with the coefficients."""
        raise ConfigError("not yet")

    def analysis(self, name: str, file: str) -> bytes:
        """Read it."""
        return self._object(ANALYZE_STAGE, name, layout.analysis(name, file))

    def analysis_files(self, name: str) -> list[str]:
        """Read the receipt."""
        self._ledger.require(ANALYZE_STAGE, name)
        return [record.key for record in self._ledger.receipt(ANALYZE_STAGE, name).objects]

    def _object(self, stage: str, task: str, key: str) -> bytes:
        self._ledger.require(stage, task)
        return read_object(self._store, self._ledger.receipt(stage, task), key)
