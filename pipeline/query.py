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
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.status import RunStatus, read_status
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array, ChunkStore
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.kernel import KernelReader
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import KernelGeometry, Manifest, SolutionRecord
from ntkpipe.storage.stores import AbstractStore, open_store
from ntkpipe.workers.tasks import ANALYZE_STAGE, SOLVE_STAGE

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
    """

    def __init__(self, store: AbstractStore) -> None:
        self.url = store.url
        self.manifest = Manifest.read(store)
        self._store = store
        self._chunks = ChunkStore(store, read_only=True)
        self._ledger = Ledger(store)
        self._samples = SampleReader(self._chunks, self._ledger, self.manifest.geometry)
        self._ids: dict[str, list[str]] = {}
        self._positions: dict[str, dict[str, int]] = {}

    def __repr__(self) -> str:
        return f"Run({self.url!r})"

    @cached_property
    def config(self) -> RunConfig:
        """The configuration with which the run was started."""
        return RunConfig.model_validate(self.manifest.config)

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
            self._ids[split] = self._samples.sample_ids(split)
        return self._ids[split]

    def labels(self, split: str) -> Array | None:
        """Return the labels of a split, None if it has none."""
        self._check_name("split", split, self.manifest.geometry.splits)
        return self._samples.labels(split)

    def outputs(self, split: str) -> Array:
        """Return the network's (N, C) outputs on a split."""
        return self._samples.outputs(split, 0, len(self.ids(split)))

    def kernel(
        self, name: str, rows: str | None = None, columns: str | None = None, *, component: str | None = None
    ) -> "KernelQuery":
        """Return a kernel matrix, to be indexed like an array: ``run.kernel("trntk", "test")[0:5, "digits-0007"]``.

        Args:
            name: Of the kernel.
            rows: Split of the rows; the training split by default.
            columns: Split of the columns; the training split by default.
            component: A parameter's name, for a layerwise kernel.

        Raises:
            NotFoundError: There is no such kernel, pair of splits, or component.
        """
        shape = self._kernel(name)
        pair = (rows or self.train_split, columns or self.train_split)
        if pair not in self.manifest.geometry.pairs:
            stored = ", ".join(f"{one} x {other}" for one, other in self.manifest.geometry.pairs)
            raise NotFoundError(f"{self.url} has no kernel between {pair[0]!r} and {pair[1]!r}. Stored: {stored}")
        group = None
        if component is not None:
            self._check_name("component", component, shape.groups)
            group = shape.groups.index(component)
        reader = KernelReader(self._chunks, self._ledger, self.manifest.geometry, name, *pair, group=group)
        return KernelQuery(self, reader, pair)

    def standard_errors(self, name: str, rows: str | None = None, columns: str | None = None) -> "ErrorQuery":
        """Return the standard errors of a kernel's entries, to be indexed like the kernel; zero where it is exact.

        Raises:
            NotFoundError: There is no such kernel or pair of splits, or the run was written by a version whose features
                do not tell their error.
        """
        shape = self._kernel(name)
        if shape.feature_dim is not None and shape.kind != "ck" and self.manifest.numerics_version < 2:
            raise NotFoundError(
                f"{self.url} was written by a version whose features do not come in two independent halves, so that "
                "they do not tell the error of a kernel entry. Run it again to get standard errors."
            )
        pair = (rows or self.train_split, columns or self.train_split)
        for split in pair:
            self._check_name("split", split, self.manifest.geometry.splits)
        return ErrorQuery(self, shape, pair)

    def diagonal(self, name: str, split: str | None = None) -> Array:
        """Return K(x, x) before any normalisation, (N,): for a cosine kernel the squared norm of the gradient."""
        self._kernel(name)
        split = split or self.train_split
        return self._samples.diagonal(name, split, 0, len(self.ids(split)))

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
        query = self.kernel(kernel or self.manifest.geometry.kernels[0].name, split)
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
        return self._chunks.read(layout.solution(name), (0, 0))

    def solution_record(self, name: str) -> SolutionRecord:
        """Return how a solution was found and how well it solves its system."""
        self._require_solution(name)
        key = layout.solution_record(name)
        return SolutionRecord.parse(self._store.read(key), f"{self.url}/{key}")

    def predictions(self, name: str, split: str) -> Array:
        """Return the (M, T) predictions of a solution on a split."""
        self._require_solution(name)
        predicted = [rows for rows, columns in self.manifest.geometry.pairs if columns == self.train_split]
        self._check_name("split", split, predicted)
        return self._chunks.read(layout.prediction(name, split), (0, 0))

    def analysis(self, name: str, file: str = "summary.json") -> bytes:
        """Return what an analysis left: ``summary.json``, ``table.csv`` or ``picture.png``."""
        self._check_name("analysis", name, [item.name for item in self.config.analyses])
        self._ledger.require(ANALYZE_STAGE, name)
        return self._store.read(layout.analysis(name, file))

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

    def _kernel(self, name: str) -> KernelGeometry:
        self._check_name("kernel", name, [kernel.name for kernel in self.manifest.geometry.kernels])
        return self.manifest.geometry.kernel(name)

    def _require_solution(self, name: str) -> None:
        self._check_name("solution", name, self.manifest.geometry.solutions)
        self._ledger.require(SOLVE_STAGE, name)

    def _check_name(self, what: str, name: str, valid: Any) -> None:
        if name not in valid:
            raise NotFoundError(f"{self.url}: {unknown_name(what, name, valid)}")


@final
class KernelQuery:
    """A kernel matrix of a run, indexed like an array but read tile by tile.

    Attributes:
        shape: (N, M).
    """

    def __init__(self, run: Run, reader: KernelReader, pair: tuple[str, str]) -> None:
        self._run = run
        self._reader = reader
        self._pair = pair
        self.shape = reader.shape

    def __getitem__(self, index: tuple[Index, Index]) -> Array:
        """Return entries at all pairs of rows and columns, (M, N); a single position drops its axis.

        Raises:
            ChunkNotReadyError: A block that is needed has not been committed yet.
            NotFoundError: A position or id does not exist.
        """
        if not isinstance(index, tuple) or len(index) != 2:
            raise ConfigError("a kernel is indexed by rows and columns, such as [0:5, :]")
        rows, columns = (self._run.positions(one, split) for one, split in zip(index, self._pair, strict=True))
        values = self._reader.read(rows, columns)
        single = tuple(0 if isinstance(one, int | str | np.integer) else slice(None) for one in index)
        return np.asarray(values[single])


@final
class ErrorQuery:
    """Standard errors of an estimated kernel matrix, indexed like the matrix.

    The two halves of the features are independent sketches. Each estimates an entry by twice its inner product; the
    estimate is their mean, and half their difference is its standard error. A single entry's has one degree of freedom
    only: look at many of them, such as their root mean square.

    Attributes:
        shape: (N, M).
    """

    def __init__(self, run: Run, kernel: KernelGeometry, pair: tuple[str, str]) -> None:
        self._run = run
        self._kernel = kernel
        self._pair = pair
        rows, columns = (run.manifest.geometry.splits[split].num_samples for split in pair)
        self.shape = (rows, columns)

    def __getitem__(self, index: tuple[Index, Index]) -> Array:
        """Return the standard errors at all pairs of rows and columns, float64; zeros for an exact kernel.

        Raises:
            ChunkNotReadyError: Features that are needed have not been committed yet.
            NotFoundError: A position or id does not exist.
        """
        if not isinstance(index, tuple) or len(index) != 2:
            raise ConfigError("standard errors are indexed by rows and columns, such as [0:5, :]")
        at = [self._run.positions(one, split) for one, split in zip(index, self._pair, strict=True)]
        errors = np.zeros((len(at[0]), len(at[1])))
        if self._kernel.feature_dim is not None and self._kernel.kind != "ck":
            errors = self._errors(*at)
        single = tuple(0 if isinstance(one, int | str | np.integer) else slice(None) for one in index)
        return np.asarray(errors[single])

    def _errors(self, rows: Positions, columns: Positions) -> Array:
        name = self._kernel.name
        one, other = (
            self._run.features[name, split][at].astype(np.float64)
            for split, at in zip(self._pair, (rows, columns), strict=True)
        )
        half = one.shape[-1] // 2
        first, second = (
            one[..., part] @ other[..., part].swapaxes(-1, -2) for part in (slice(half), slice(half, None))
        )
        difference = first - second
        errors: Array = np.abs(difference.sum(axis=0) if difference.ndim == 3 else difference)
        if self._kernel.kind == "trntk":
            norms = [self._run.diagonal(name, split)[at] for split, at in zip(self._pair, (rows, columns), strict=True)]
            scale = np.sqrt(np.outer(*norms))
            errors = np.divide(errors, scale, out=np.zeros_like(errors), where=scale > 0)
        return errors


@final
class FeatureQuery:
    """Stored features by kernel and split."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __getitem__(self, which: str | tuple[str, str]) -> "FeatureRows":
        """Return a kernel's features on a split; the training split if only the kernel is named."""
        name, split = which if isinstance(which, tuple) else (which, self._run.train_split)
        return FeatureRows(self._run, name, split)


@final
class FeatureRows:
    """The (N, K) features of a kernel on a split.

    Attributes:
        num_values: Numbers per sample: K, or G K for a layerwise kernel.
    """

    def __init__(self, run: Run, name: str, split: str) -> None:
        shape = run._kernel(name)
        if shape.feature_dim is None:
            raise NotFoundError(f"{run.url}: kernel {name!r} was computed exactly and has no stored features.")
        self._run = run
        self._shape = shape
        self.num_values = shape.feature_dim * max(1, len(shape.groups))
        self._split = split

    def __getitem__(self, index: Index) -> Array:
        """Return rows, (M, K), or (G, M, K) for a layerwise kernel; reads the range that spans them."""
        positions = self._run.positions(index, self._split)
        if not len(positions):
            return np.empty((0, self._shape.feature_dim or 0), self._run.manifest.geometry.dtype)
        start, stop = int(positions.min()), int(positions.max()) + 1
        groups: list[int | None] = list(range(len(self._shape.groups))) or [None]
        parts = [
            self._run._samples.features(self._shape.name, self._split, start, stop, group)[positions - start]
            for group in groups
        ]
        return parts[0] if not self._shape.groups else np.stack(parts)
