"""Asking a run: what is stored, by position, slice or sample id. Needs neither torch nor Ray."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.configs.kernels.names import RANDOM_FEATURES
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.queries import ErrorQuery, FeatureQuery, KernelQuery
from ntkpipe.pipeline.status import RunStatus, read_status
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.committed import read_committed
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrices import MatrixReader
from ntkpipe.storage.objects import read_npy, read_object
from ntkpipe.storage.records import KernelGeometry, Manifest
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.solutions import SOLVE_STAGE, SolutionRecord
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.tasks import ANALYZE_STAGE

Positions = npt.NDArray[np.int64]
Index = int | str | slice | Sequence[int] | Sequence[str] | npt.NDArray[Any]
"""A position, a sample id, a slice of positions, several of either, or a boolean mask."""


@dataclass(frozen=True, slots=True)
class Neighbor:
    """A training sample and its kernel value."""

    sample_id: str
    position: int
    value: float


def open_run(url: str | os.PathLike[str]) -> "Run":
    """Open a run for queries, finished or not.

    Raises:
        NotFoundError: There is no run.
        ConfigError: The URL is not acceptable.
    """
    return Run(open_store(url))


@final
class Run:
    """A stored run. Only committed data is ever returned.

    Attributes:
        url: Where the run lives.
        manifest: What it is.
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
        self._ids: dict[str, list[str]] = {}
        self._positions: dict[str, dict[str, int]] = {}

    def __repr__(self) -> str:
        return f"Run({self.url!r})"

    @cached_property
    def config(self) -> RunConfig:
        """The configuration with which the run was started."""
        return load_config(self.manifest.config, stored=True)

    @property
    def sample_ids(self) -> list[str]:
        """The ids of the training split."""
        return self.ids(self.train_split)

    @property
    def train_split(self) -> str:
        """The split in which solutions live."""
        return self.manifest.geometry.train_split

    @property
    def features(self) -> "FeatureQuery":
        """Stored features: ``run.features["trntk", "test"][0:10]``."""
        return FeatureQuery(self)

    def status(self) -> RunStatus:
        """Return how far the run is, read from its receipts."""
        return read_status(self._store, self.manifest)

    def ids(self, split: str) -> list[str]:
        """Return the ids of a split, in order."""
        if split not in self._ids:
            self._check_name("split", split, self.manifest.geometry.splits)
            self._ids[split] = self.samples.sample_ids(split)
        return self._ids[split]

    def labels(self, split: str) -> Array | None:
        """Return the labels of a split, None if it has none."""
        self._check_name("split", split, self.manifest.geometry.splits)
        return self.samples.labels(split)

    def outputs(self, split: str, member: str | None = None) -> Array:
        """Return the network's (N, C) outputs on a split; those of one member where the model has several."""
        geometry = self.manifest.geometry
        if not geometry.num_outputs:
            raise NotFoundError(f"{self.url} was computed without a model, so there are no outputs.")
        if member is not None or geometry.members:
            self._check_name("member", member or "", geometry.members)
        position = None if member is None else geometry.members.index(member)
        return self.samples.outputs(split, 0, len(self.ids(split)), member=position)

    def kernel(
        self, name: str, rows: str | None = None, columns: str | None = None, *, component: str | None = None
    ) -> "KernelQuery":
        """Return a kernel matrix, to be indexed like an array: ``run.kernel("trntk", "test")[0:5, "digits-0007"]``.

        Args:
            name: Of the kernel, or ``NAME@MEMBER`` where the model has several members.
            rows: Split of the rows; the training split by default.
            columns: Split of the columns; the training split by default.
            component: A parameter's name, for a layerwise kernel.

        Raises:
            NotFoundError: There is no such kernel, pair of splits, or component.
        """
        shape, _ = self.shape_of(name)
        pair = (rows or self.train_split, columns or self.train_split)
        if pair not in self.manifest.geometry.pairs:
            stored = ", ".join(f"{one} x {other}" for one, other in self.manifest.geometry.pairs)
            raise NotFoundError(f"{self.url} has no kernel between {pair[0]!r} and {pair[1]!r}. Stored: {stored}")
        if component is not None:
            self._check_name("component", component, shape.groups)
        matrix = self._matrices.matrix(name, *pair, component=component)
        return KernelQuery(self, matrix, pair, shape.width)

    def standard_errors(self, name: str, rows: str | None = None, columns: str | None = None) -> "ErrorQuery":
        """Return the standard errors of a kernel's entries, to be indexed like the kernel; zero where it is exact.

        Raises:
            NotFoundError: There is no such kernel or pair of splits, or its error is not known: it is made of other
                kernels, or of random features of which there is one set.
        """
        shape, _ = self.shape_of(name)
        if shape.derived is not None or (shape.kind in RANDOM_FEATURES):
            raise NotFoundError(
                f"{self.url}: the error of kernel {name!r} is not known. Ask for that of a projected kernel."
            )
        if shape.feature_dim is not None and self.manifest.numerics_version < 3:
            raise NotFoundError(
                f"{self.url} was written by an earlier version, which does not record whether features come in two "
                "independent halves. Run it again to get standard errors."
            )
        pair = (rows or self.train_split, columns or self.train_split)
        for split in pair:
            self._check_name("split", split, self.manifest.geometry.splits)
        return ErrorQuery(self, name, pair)

    def diagonal(self, name: str, split: str | None = None) -> Array:
        """Return K(x, x) before any normalisation, (N,): for a cosine kernel the squared norm of the gradient.

        For a kernel of (sample, output) pairs it is (N, C). A kernel between two members of the model has one for each:
        ``NAME@MEMBER``.
        """
        shape, member = self.shape_of(name, of_samples=True)
        split = split or self.train_split
        num = len(self.ids(split))
        if shape.derived is None:
            return self.samples.diagonal(shape.name, split, 0, num, member=member)
        if not shape.symmetric or shape.width > 1:
            raise NotFoundError(f"{self.url}: the diagonal of kernel {name!r} is not stored; read it from its matrix.")
        return self._matrices.diagonal(name, split)

    def neighbors(
        self, sample: str | int, k: int = 5, *, kernel: str | None = None, split: str | None = None
    ) -> list[Neighbor]:
        """Return the ``k`` training samples with the largest kernel value to a sample, best first, ties by position.

        Args:
            sample: An id, searched in all splits that have a kernel to the training split, or a position.
            k: How many.
            kernel: Of the run; the first by default.
            split: Of the sample; needed for a position that is not in the training split.
        """
        if k < 1:
            raise ConfigError(f"k = {k} must be at least 1.")
        if split is None:
            split = self._split_of(sample) if isinstance(sample, str) else self.train_split
        query = self.kernel(kernel or self.manifest.geometry.references[0], split)
        if query.width > 1:
            raise ConfigError(
                "rows of a kernel of (sample, output) pairs are no samples; ask for neighbors under another."
            )
        row = self.positions(sample, split)
        values = np.asarray(query[row, :], dtype=np.float64).ravel()
        if split == self.train_split:
            values[row] = -np.inf
        order = np.argsort(-values, kind="stable")[: min(k, int(np.isfinite(values).sum()))]
        ids = self.sample_ids
        return [Neighbor(ids[position], int(position), float(values[position])) for position in order]

    def solution(self, name: str) -> Array:
        """Return the (N, T) coefficients of a solution."""
        self._require_solution(name)
        return read_committed(self._chunks, self._ledger, SOLVE_STAGE, name, layout.solution(name), (0, 0))

    def solution_record(self, name: str) -> SolutionRecord:
        """Return how a solution was found and how well it solves its system."""
        self._require_solution(name)
        key = layout.solution_record(name)
        return SolutionRecord.parse(self._object(SOLVE_STAGE, name, key), f"{self.url}/{key}")

    def solution_extra(self, name: str, what: str) -> Array:
        """Return something else that a solution's solver found, such as ``path_ridges``; its record lists what there is.

        Raises:
            NotFoundError: There is nothing of that name.
        """
        record = self.solution_record(name)
        if what not in record.extras:
            raise NotFoundError(f"{self.url}: {unknown_name(f'part of solution {name}', what, record.extras)}")
        return read_npy(self._object(SOLVE_STAGE, name, layout.solution_extra(name, what)))

    def predictions(self, name: str, split: str) -> Array:
        """Return the (M, T) predictions of a solution on a split."""
        self._require_solution(name)
        self._check_name("split", split, self.manifest.geometry.predicted_splits(name))
        return read_committed(self._chunks, self._ledger, SOLVE_STAGE, name, layout.prediction(name, split), (0, 0))

    def analysis(self, name: str, file: str = "summary.json") -> bytes:
        """Return what an analysis left: ``summary.json``, ``table.csv`` or ``picture.png``."""
        self._check_name("analysis", name, [item.name for item in self.config.analyses])
        self._ledger.require(ANALYZE_STAGE, name)
        return self._object(ANALYZE_STAGE, name, layout.analysis(name, file))

    def analysis_files(self, name: str) -> list[str]:
        """Return the keys of everything an analysis left, relative to the run."""
        self._check_name("analysis", name, [item.name for item in self.config.analyses])
        self._ledger.require(ANALYZE_STAGE, name)
        return [record.key for record in self._ledger.receipt(ANALYZE_STAGE, name).objects]

    def positions(self, index: Index, split: str) -> Positions:
        """Turn any index into positions in a split.

        Raises:
            NotFoundError: A sample id or position does not exist.
            ConfigError: The index is of no known form.
        """
        ids = self.ids(split)
        if isinstance(index, slice):
            return np.arange(len(ids))[index]
        items: list[Any] = [index] if isinstance(index, int | str | np.integer) else list(index)
        if items and all(isinstance(item, bool | np.bool_) for item in items):
            if len(items) != len(ids):
                raise ConfigError(f"a mask of {len(items)} values cannot select from {len(ids)} samples of {split!r}.")
            return np.flatnonzero(np.array(items, dtype=bool))
        return np.array([self._position(item, split, ids) for item in items], dtype=np.int64)

    def _position(self, item: Any, split: str, ids: list[str]) -> int:
        if isinstance(item, str):
            if split not in self._positions:
                self._positions[split] = {text: position for position, text in enumerate(ids)}
            known = self._positions[split]
            if item not in known:
                raise NotFoundError(
                    f"split {split!r} has no sample {item!r}. Its {len(ids)} ids run from {ids[0]!r} to {ids[-1]!r}."
                )
            return known[item]
        if not isinstance(item, int | np.integer):
            raise ConfigError(f"{item!r} is neither a position nor a sample id.")
        if not -len(ids) <= item < len(ids):
            raise NotFoundError(f"position {item} is outside split {split!r} with {len(ids)} samples.")
        return int(item) % len(ids)

    def _split_of(self, sample: str) -> str:
        splits = [rows for rows, columns in self.manifest.geometry.pairs if columns == self.train_split]
        for split in splits:
            if sample in self.ids(split):
                return split
        raise NotFoundError(f"no sample {sample!r} in the splits {', '.join(splits)}.")

    def shape_of(self, reference: str, *, of_samples: bool = False) -> tuple[KernelGeometry, int | None]:
        """Return the kernel that a reference names, and the position of its member.

        Args:
            reference: NAME, or NAME@MEMBER.
            of_samples: What is stored per sample is meant, which a kernel between two members has for each of them.

        Raises:
            NotFoundError: There is no such kernel.
        """
        geometry = self.manifest.geometry
        valid = list(geometry.references)
        if of_samples:
            valid = [name for name in valid if not geometry.matrix(name)[0].cross]
            valid += [
                f"{kernel.name}@{member}" for kernel in geometry.kernels if kernel.cross for member in kernel.members
            ]
        self._check_name("kernel", reference, valid)
        return geometry.matrix(reference)

    def _require_solution(self, name: str) -> None:
        self._check_name("solution", name, self.manifest.geometry.solutions)
        self._ledger.require(SOLVE_STAGE, name)

    def _object(self, stage: str, task: str, key: str) -> bytes:
        return read_object(self._store, self._ledger.receipt(stage, task), key)

    def _check_name(self, what: str, name: str, valid: Any) -> None:
        if name not in valid:
            raise NotFoundError(f"{self.url}: {unknown_name(what, name, valid)}")
