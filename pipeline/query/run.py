"""Asking a run: what is stored, by position, slice, mask or sample id. Needs neither torch nor Ray."""

import os
from functools import cached_property
from threading import Lock
from typing import Any, final

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.configs.kernels.names import RANDOM_FEATURES
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.query.matrices import ErrorQuery, FeatureQuery, KernelQuery
from ntkpipe.pipeline.query.names import Index, MatrixName, Neighbor, Positions
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.query.selection import Ids
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.pipeline.status import RunStatus
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.records import KernelGeometry, Manifest
from ntkpipe.storage.solutions import SolutionRecord
from ntkpipe.storage.stores.registry import open_store


def open_run(url: str | os.PathLike[str]) -> "Run":
    """Open a run for queries, finished or not.

    Raises:
        NotFoundError: There is no run.
        ConfigError: The URL is not acceptable.
    """
    return Run(StoredRunReader(open_store(url)))


@final
class Run:
    """A run: in a store, or behind a service. Only committed data is ever returned. Thread safe.

    Attributes:
        url: Where the run lives.
        reader: Answers what it is asked, by positions and checked names.
    """

    def __init__(self, reader: AbstractRunReader) -> None:
        self.url = reader.url
        self.reader = reader
        self._ids: dict[str, Ids] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Run({self.url!r})"

    @property
    def manifest(self) -> Manifest:
        """What the run is."""
        return self.reader.manifest

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
        return self.reader.status()

    def ids(self, split: str) -> list[str]:
        """Return the ids of a split, in order."""
        return self._ids_of(split).names

    def labels(self, split: str) -> Array | None:
        """Return the labels of a split, None if it has none."""
        self._check_name("split", split, self.manifest.geometry.splits)
        return self.reader.labels(split)

    def outputs(self, split: str, member: str | None = None, index: Index = slice(None)) -> Array:
        """Return the network's (N, C) outputs on a split; those of one member where the model has several."""
        geometry = self.manifest.geometry
        if not geometry.num_outputs:
            raise NotFoundError(f"{self.url} was computed without a model, so there are no outputs.")
        if member is not None or geometry.members:
            self._check_name("member", member or "", geometry.members)
        return self.reader.outputs(split, member, self.positions(index, split))

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
        return KernelQuery(self, MatrixName(name, *pair, layers=() if component is None else (component,)))

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
        return ErrorQuery(self, MatrixName(name, *pair))

    def diagonal(self, name: str, split: str | None = None) -> Array:
        """Return K(x, x) before any normalisation, (N,): for a cosine kernel the squared norm of the gradient.

        For a kernel of (sample, output) pairs it is (N, C). A kernel between two members of the model has one for each:
        ``NAME@MEMBER``.
        """
        shape, _ = self.shape_of(name, of_samples=True)
        split = split or self.train_split
        self._check_name("split", split, self.manifest.geometry.splits)
        if shape.derived is not None and (not shape.symmetric or shape.width > 1):
            raise NotFoundError(f"{self.url}: the diagonal of kernel {name!r} is not stored; read it from its matrix.")
        return self.reader.diagonal(name, split)

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
        found = self.reader.nearest(query.name, self.positions(sample, split), k)
        ids = self.sample_ids
        return [
            Neighbor(ids[position], int(position), float(value))
            for position, value in zip(found.positions[0], found.values[0], strict=True)
        ]

    def solution(self, name: str) -> Array:
        """Return the (N, T) coefficients of a solution."""
        self._require_solution(name)
        return self.reader.solution(name)

    def solution_record(self, name: str) -> SolutionRecord:
        """Return how a solution was found and how well it solves its system."""
        self._require_solution(name)
        return self.reader.solution_record(name)

    def solution_extra(self, name: str, what: str) -> Array:
        """Return something else that a solution's solver found, such as ``path_ridges``; its record lists what there is.

        Raises:
            NotFoundError: There is nothing of that name.
        """
        record = self.solution_record(name)
        if what not in record.extras:
            raise NotFoundError(f"{self.url}: {unknown_name(f'part of solution {name}', what, record.extras)}")
        return self.reader.solution_extra(name, what)

    def predictions(self, name: str, split: str) -> Array:
        """Return the (M, T) predictions of a solution on a split."""
        self._require_solution(name)
        self._check_name("split", split, self.manifest.geometry.predicted_splits(name))
        return self.reader.predictions(name, split)

    def analysis(self, name: str, file: str = "summary.json") -> bytes:
        """Return what an analysis left: ``summary.json``, ``table.csv`` or ``picture.png``."""
        self._check_name("analysis", name, [item.name for item in self.config.analyses])
        return self.reader.analysis(name, file)

    def analysis_files(self, name: str) -> list[str]:
        """Return the keys of everything an analysis left, relative to the run."""
        self._check_name("analysis", name, [item.name for item in self.config.analyses])
        return self.reader.analysis_files(name)

    def positions(self, index: Index, split: str) -> Positions:
        """Turn any index into positions in a split.

        Raises:
            NotFoundError: A sample id or position does not exist.
            ConfigError: The index is of no known form.
        """
        return self._ids_of(split).positions(index)

    def _ids_of(self, split: str) -> Ids:
        with self._lock:
            found = self._ids.get(split)
        if found is None:
            self._check_name("split", split, self.manifest.geometry.splits)
            found = Ids(split, self.reader.ids(split))
            with self._lock:
                found = self._ids.setdefault(split, found)
        return found

    def _split_of(self, sample: str) -> str:
        splits = [rows for rows, columns in self.manifest.geometry.pairs if columns == self.train_split]
        for split in splits:
            if self._ids_of(split).find(sample) is not None:
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

    def num_features(self, reference: str) -> int:
        """Return how many numbers a kernel stores per sample: K, or G K for a layerwise kernel.

        Raises:
            NotFoundError: There is no such kernel, or it was computed exactly.
        """
        shape, _ = self.shape_of(reference, of_samples=True)
        if shape.feature_dim is None:
            raise NotFoundError(f"{self.url}: kernel {reference!r} was computed exactly and has no stored features.")
        return shape.feature_dim * max(1, len(shape.groups))

    def _require_solution(self, name: str) -> None:
        self._check_name("solution", name, self.manifest.geometry.solutions)

    def _check_name(self, what: str, name: str, valid: Any) -> None:
        if name not in valid:
            raise NotFoundError(f"{self.url}: {unknown_name(what, name, valid)}")
