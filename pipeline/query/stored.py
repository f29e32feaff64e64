"""Reading a run from its own storage. Needs neither torch nor Ray."""

from collections import OrderedDict
from collections.abc import Iterator
from threading import Lock
from typing import Final, final

import numpy as np

from ntkpipe.configs.errors import CorruptChunkError
from ntkpipe.configs.kernels.derived import ScaledConfig, SumConfig
from ntkpipe.pipeline.query.attributions import attributions, solved_matrix
from ntkpipe.pipeline.query.estimates import standard_errors
from ntkpipe.pipeline.query.limits import Limits
from ntkpipe.pipeline.query.names import Doubles, MatrixName, Missing, Nearest, Positions, Spectrum
from ntkpipe.pipeline.query.neighbors import nearest
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.query.selection import rows_of_samples
from ntkpipe.pipeline.query.spectra import spectrum
from ntkpipe.pipeline.query.versions import Versions
from ntkpipe.pipeline.status import RunStatus, read_status
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import REMEDY, Array, ChunkStore
from ntkpipe.storage.committed import CommittedChunks
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrices import CACHE_BYTES, MatrixReader
from ntkpipe.storage.matrix import AbstractMatrix
from ntkpipe.storage.objects import read_npy, read_object
from ntkpipe.storage.pinned import PinnedStore
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.solutions import SOLVE_STAGE, SolutionRecord
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.tile_cache import TileCache
from ntkpipe.storage.transformed import Formula, TransformReader
from ntkpipe.workers.tasks import ANALYZE_STAGE

KEPT_MATRICES: Final = 64
"""Of different names, with the diagonals and means that their entries are made with."""


@final
class StoredRunReader(AbstractRunReader):
    """A run in a store. Only committed data is ever returned. Thread safe.

    Args:
        store: Of the run.
        cache: Of decoded chunks, which may be that of other runs too; one of 256 MiB for itself by default.
        limits: What one request may take.

    Attributes:
        samples: Reads what is stored per sample.
    """

    def __init__(self, store: AbstractStore, *, cache: TileCache | None = None, limits: Limits | None = None) -> None:
        self.url = store.url
        self._pinned = PinnedStore(store)
        self.manifest = self._pinned.manifest
        geometry = self.manifest.geometry
        cache = TileCache(CACHE_BYTES) if cache is None else cache
        self._store = store
        self._limits = Limits() if limits is None else limits
        self._ledger = Ledger(self._pinned)
        chunks = ChunkStore(self._pinned, read_only=True, specs=array_specs(geometry))
        self._chunks = CommittedChunks(chunks, self._ledger, cache)
        self.samples = SampleReader(chunks, self._ledger, geometry, cache=cache)
        self._matrices = MatrixReader(chunks, self._ledger, geometry, cache=cache)
        self._transforms = TransformReader(self._matrices, geometry, num_threads=store.reads_at_once)
        self._versions = Versions(self.manifest, self._ledger, self.samples)
        self._made: OrderedDict[MatrixName, AbstractMatrix] = OrderedDict()
        self._lock = Lock()

    def status(self) -> RunStatus:
        """Read it from receipts and the lock."""
        found = read_status(self._store, self.manifest)
        self._pinned.check()
        return found

    def ids(self, split: str) -> list[str]:
        """Read them."""
        return self.samples.sample_ids(split)

    def labels(self, split: str) -> Array | None:
        """Read them, and check that classes are among those of the run."""
        shape, found = self.manifest.geometry.splits[split], self.samples.labels(split)
        if found is not None and shape.labels == "classes" and found.max() >= shape.num_targets:
            raise CorruptChunkError(
                f"{self.url}: split {split!r} has class {found.max()}, and the run {shape.num_targets} classes. {REMEDY}"
            )
        return found

    def outputs(self, split: str, member: str | None, rows: Positions) -> Array:
        """Read the chunks that hold any of the rows."""
        geometry = self.manifest.geometry
        self._check_rows(rows, geometry.num_outputs)
        if not len(rows):
            return np.empty((0, geometry.num_outputs), geometry.dtype)
        position = None if member is None else geometry.members.index(member)
        return self.samples.outputs_at(split, rows, member=position)

    def entries(self, name: MatrixName, rows: Positions, columns: Positions, missing: Missing) -> Array:
        """Read each tile once, several side by side."""
        self._limits.check(len(rows) * len(columns), self.num_bytes(name, rows, columns))
        matrix = self.matrix(name)
        return matrix.read(rows, columns, missing_as_nan=missing == "nan", num_threads=self._store.reads_at_once)

    def matrix(self, name: MatrixName, *, cached: bool = True) -> AbstractMatrix:
        """Return a matrix, to be read tile by tile.

        Args:
            name: Of the matrix.
            cached: Whether decoded tiles are held. Who reads each tile of a large matrix once should not hold them.

        Raises:
            ChunkNotReadyError: A diagonal, or the means of a matrix, are needed and not committed.
        """
        if not cached:
            return self._make(name, cache_bytes=0)
        with self._lock:
            found = self._made.get(name)
            if found is not None:
                self._made.move_to_end(name)
                return found
        found = self._make(name)
        with self._lock:
            self._made[name] = found
            while len(self._made) > KEPT_MATRICES:
                self._made.popitem(last=False)
        return found

    def _make(self, name: MatrixName, cache_bytes: int | None = None) -> AbstractMatrix:
        formula = Formula(name.kernel, name.layers, name.transforms)
        return self._transforms.matrix(formula, name.rows, name.columns, cache_bytes=cache_bytes)

    def missing_blocks(self, name: MatrixName, rows: Positions, columns: Positions) -> list[str]:
        """Return the ids of the kernel tasks that entries need and that are not committed, in order."""
        tasks = dict[str, None]()
        for matrix, at_rows, at_columns in self._needed(name, rows, columns):
            tasks |= dict.fromkeys(matrix.task(*tile) for tile in matrix.tiles(at_rows, at_columns))
        return self._ledger.fetch(KERNEL_STAGE, list(tasks))

    def _needed(
        self, name: MatrixName, rows: Positions, columns: Positions
    ) -> Iterator[tuple[AbstractMatrix, Positions | None, Positions | None]]:
        """Yield stored matrices whose blocks entries need, with the rows and columns of them; None for all."""
        yield self._matrices.stored(name.kernel, name.rows, name.columns), rows, columns
        formula, train = Formula(name.kernel, name.layers, name.transforms), self.manifest.geometry.train_split
        for split in self._transforms.passes(formula, name.rows, name.columns):
            yield self._matrices.stored(name.kernel, split, train), None, None

    def num_bytes(self, name: MatrixName, rows: Positions, columns: Positions) -> int:
        """Return how many bytes the chunks have that entries are made of, means that are not known yet included."""
        num_leaves = self._matrices.num_leaves(name.kernel) * max(1, len(name.layers))
        return num_leaves * sum(
            matrix.num_tiles(at_rows, at_columns) * matrix.tile_bytes
            for matrix, at_rows, at_columns in self._needed(name, rows, columns)
        )

    def _check_rows(self, rows: Positions, width: int) -> None:
        geometry = self.manifest.geometry
        num_chunks = len(np.unique(rows // geometry.shard_rows))
        item_bytes = np.dtype(geometry.dtype).itemsize
        self._limits.check(len(rows) * width, num_chunks * geometry.shard_rows * width * item_bytes)

    def errors(self, name: MatrixName, rows: Positions, columns: Positions) -> Doubles:
        """Compare the two halves of the features."""
        self._limits.check(len(rows) * len(columns))
        return standard_errors(self, name, rows, columns)

    def features(self, kernel: str, split: str, rows: Positions) -> Array:
        """Read the chunks that hold any of the rows."""
        geometry = self.manifest.geometry
        shape, member = geometry.matrix(kernel)
        groups: list[int | None] = list(range(len(shape.groups))) or [None]
        self._check_rows(rows, (shape.feature_dim or 0) * len(groups))
        parts = [
            self.samples.features_at(shape.name, split, rows, member=member, group=group)
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
        """Read tiles column by column."""
        return nearest(self, name, rows, k, opposed=opposed, label=label)

    def spectrum(self, name: MatrixName, max_samples: int) -> Spectrum:
        """Decompose a dense matrix."""
        return spectrum(self, name, max_samples)

    def solution(self, name: str) -> Array:
        """Read it."""
        return self._chunks.whole(SOLVE_STAGE, name, layout.solution(name), (0, 0)).copy()

    def solution_record(self, name: str) -> SolutionRecord:
        """Read it."""
        key = layout.solution_record(name)
        return SolutionRecord.parse(self._object(SOLVE_STAGE, name, key), f"{self.url}/{key}")

    def solution_extra(self, name: str, what: str) -> Array:
        """Read it."""
        key = layout.solution_extra(name, what)
        try:
            return read_npy(self._object(SOLVE_STAGE, name, key))
        except ValueError as error:
            raise CorruptChunkError(f"{self.url}/{key} is no array ({error}). {REMEDY}") from None

    def predictions(self, name: str, split: str) -> Array:
        """Read them."""
        return self._chunks.whole(SOLVE_STAGE, name, layout.prediction(name, split), (0, 0)).copy()

    def attributions(self, solution: str, split: str, rows: Positions, target: int | None = None) -> Doubles:
        """Multiply rows of the kernel with the coefficients."""
        geometry = self.manifest.geometry
        width = 1 if target is not None else geometry.solution_targets[geometry.solutions.index(solution)]
        self._limits.check(len(rows) * geometry.splits[geometry.train_split].num_samples * width)
        return attributions(self, solution, split, rows, target)

    def analysis(self, name: str, file: str) -> bytes:
        """Read it."""
        return self._object(ANALYZE_STAGE, name, layout.analysis(name, file))

    def analysis_files(self, name: str) -> list[str]:
        """Read the receipt."""
        self._ledger.require(ANALYZE_STAGE, name)
        return [record.key for record in self._ledger.receipt(ANALYZE_STAGE, name).objects]

    def version(self, name: MatrixName, rows: Positions, columns: Positions) -> str:
        """Return a name for the content of everything that entries are made of, blocks that are not committed included.

        Raises:
            TooLargeError: Of more chunks than one request may look at; those of means are read for it.
        """
        self._limits.check(0, self.num_bytes(name, rows, columns))
        return self._versions.matrix(name, self.matrix(name), rows, columns)

    def errors_version(self, name: MatrixName, rows: Positions, columns: Positions) -> str:
        """Return a name for the content of everything that standard errors are made of."""
        return self._versions.joined(
            self._versions.samples(name.rows, rows), self._versions.samples(name.columns, columns)
        )

    def features_version(self, kernel: str, split: str, rows: Positions) -> str:
        """Return a name for the content of all chunks with any of some features."""
        return self._versions.joined(kernel, self._versions.samples(split, rows))

    def outputs_version(self, split: str, rows: Positions) -> str:
        """Return a name for the content of all chunks with any of some outputs."""
        return self._versions.samples(split, rows)

    def diagonal_version(self, kernel: str, split: str) -> str:
        """Return a name for the content of everything that a diagonal is made of."""
        geometry = self.manifest.geometry
        train, parts = geometry.train_split, []
        of = [(geometry.matrix(kernel)[0], split)]
        for shape, one in of:
            parts.append(self._versions.samples(one))
            if shape.statistic_dim is not None:
                parts += [self.samples.statistic_version(shape.name, some) for some in dict.fromkeys((one, train))]
            if (one, one) in geometry.pairs and isinstance(shape.derived, SumConfig):
                every = np.arange(geometry.splits[one].num_samples)
                parts.append(self.version(MatrixName(shape.name, one, one), every, every))
            # Without a factor it is the mean of the training split's that all of them are divided by.
            by_mean = isinstance(shape.derived, ScaledConfig) and shape.derived.factor is None
            for parent in shape.parents:
                sides = ((geometry.matrix(parent)[0], side) for side in ((one, train) if by_mean else (one,)))
                of += [side for side in sides if side not in of]
        return self._versions.joined(kernel, *parts)

    def samples_version(self, split: str) -> str:
        """Return a name for the content of ids and labels."""
        return self._versions.joined(split, self._versions.prepared())

    def solution_version(self, name: str) -> str:
        """Return a name for the content of everything that there is of a solution."""
        return self._versions.task(SOLVE_STAGE, name)

    def attributions_version(self, solution: str, split: str, rows: Positions) -> str:
        """Return a name for the content of everything that attributions are made of."""
        name = solved_matrix(self, solution, split)
        width = self.manifest.geometry.matrix(name.kernel)[0].width
        at = rows_of_samples(np.unique(rows), width)
        every = np.arange(self.manifest.geometry.splits[name.columns].num_samples * width)
        return self._versions.joined(self.solution_version(solution), self.version(name, at, every))

    def analysis_version(self, name: str) -> str:
        """Return a name for the content of everything that an analysis has left."""
        return self._versions.task(ANALYZE_STAGE, name)

    def _object(self, stage: str, task: str, key: str) -> bytes:
        self._ledger.require(stage, task)
        return read_object(self._pinned, self._ledger.receipt(stage, task), key)
