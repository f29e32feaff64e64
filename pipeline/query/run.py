"""Asking a run: what is stored, by position, slice, mask or sample id. Needs neither torch nor Ray."""

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.query.catalogue import Catalogue
from ntkpipe.pipeline.query.explained import attributions_of, summary_of
from ntkpipe.pipeline.query.formats import Answer
from ntkpipe.pipeline.query.matrices import ErrorQuery, FeatureQuery, KernelQuery
from ntkpipe.pipeline.query.names import (
    AttributionSummary,
    Doubles,
    Index,
    Neighbor,
    Positions,
    Spectrum,
)
from ntkpipe.pipeline.query.questions import ask, details_of
from ntkpipe.pipeline.query.reader import AbstractRunReader
from ntkpipe.pipeline.query.selection import is_single
from ntkpipe.pipeline.query.spectra import DEFAULT_SAMPLES
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
        self._names = Catalogue(reader)

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
        return self._names.ids(split).names

    def labels(self, split: str) -> Array | None:
        """Return the labels of a split, None if it has none."""
        self._names.check_split(split)
        return self.reader.labels(split)

    def outputs(self, split: str, member: str | None = None, index: Index = slice(None)) -> Array:
        """Return the network's (N, C) outputs on a split; those of one member where the model has several."""
        self._names.check_outputs(member)
        return self.reader.outputs(split, member, self.positions(index, split))

    def kernel(
        self,
        name: str,
        rows: str | None = None,
        columns: str | None = None,
        *,
        component: str | None = None,
        layers: Sequence[str] = (),
        transforms: Sequence[str] = (),
    ) -> "KernelQuery":
        """Return a kernel matrix, to be indexed like an array: ``run.kernel("trntk", "test")[0:5, "digits-0007"]``.

        Args:
            name: Of the kernel, or ``NAME@MEMBER`` where the model has several members.
            rows: Split of the rows; the training split by default.
            columns: Split of the columns; the training split by default.
            component: A parameter's name, for a layerwise kernel: the same as one layer.
            layers: Components of a layerwise kernel that are summed: names, or patterns such as ``layer1.*``.
            transforms: ``cosine`` and ``centred``, applied in this order when entries are read.

        Raises:
            NotFoundError: There is no such kernel, pair of splits, or component.
            ConfigError: The kernel cannot be transformed in this way.
        """
        return KernelQuery(self, self._names.matrix(name, rows, columns, component, layers, transforms))

    def standard_errors(self, name: str, rows: str | None = None, columns: str | None = None) -> "ErrorQuery":
        """Return the standard errors of a kernel's entries, to be indexed like the kernel; zero where it is exact.

        Raises:
            NotFoundError: There is no such kernel or pair of splits, or its error is not known: it is made of other
                kernels, or of random features of which there is one set.
        """
        return ErrorQuery(self, self._names.errors(name, rows, columns))

    def diagonal(self, name: str, split: str | None = None) -> Array:
        """Return K(x, x) before any normalisation, (N,): for a cosine kernel the squared norm of the gradient.

        For a kernel of (sample, output) pairs it is (N, C). A kernel between two members of the model has one for each:
        ``NAME@MEMBER``.
        """
        split = split or self.train_split
        self._names.check_diagonal(name, split)
        return self.reader.diagonal(name, split)

    def neighbors(
        self,
        sample: str | int,
        k: int = 5,
        *,
        kernel: str | None = None,
        split: str | None = None,
        opposed: bool = False,
        label: int | None = None,
        layers: Sequence[str] = (),
        transforms: Sequence[str] = (),
    ) -> list[Neighbor]:
        """Return the ``k`` training samples with the largest kernel value to a sample, best first, ties by position.

        ``run.kernel("trntk", "test").neighbors([0, 1, 2])`` returns those of several samples.

        Args:
            sample: An id, searched in all splits that have a kernel to the training split, or a position. A sample of
                the training split is not its own neighbour.
            k: How many.
            kernel: Of the run; the first by default.
            split: Of the sample; needed for a position that is not in the training split.
            opposed: The smallest values are wanted, the most opposed sample first.
            label: Only training samples of this class.
            layers: As of :meth:`kernel`.
            transforms: As of :meth:`kernel`.
        """
        matrix = self._kernel_of(kernel, self._names.split_of(sample, split), layers, transforms)
        return matrix.neighbors([sample], k, opposed=opposed, label=label)[0]  # type: ignore[arg-type]

    def neighbors_by_class(
        self,
        sample: str | int,
        k: int = 5,
        *,
        kernel: str | None = None,
        split: str | None = None,
        opposed: bool = False,
        layers: Sequence[str] = (),
        transforms: Sequence[str] = (),
    ) -> dict[int, list[Neighbor]]:
        """Return the neighbours of a sample in every class of the training split; arguments as of :meth:`neighbors`."""
        matrix = self._kernel_of(kernel, self._names.split_of(sample, split), layers, transforms)
        return matrix.neighbors_by_class(sample, k, opposed=opposed)

    def spectrum(
        self,
        kernel: str | None = None,
        *,
        max_samples: int = DEFAULT_SAMPLES,
        layers: Sequence[str] = (),
        transforms: Sequence[str] = (),
    ) -> Spectrum:
        """Return the eigenvalues of a symmetric kernel on the training split, and how much of the labels they explain.

        Args:
            kernel: Of the run; the first by default.
            max_samples: At most so many evenly spaced samples are taken.
            layers: As of :meth:`kernel`.
            transforms: As of :meth:`kernel`.
        """
        return self._kernel_of(kernel, self.train_split, layers, transforms).spectrum(max_samples)

    def attributions(
        self, solution: str, samples: Index = slice(None), split: str | None = None, *, target: int | None = None
    ) -> Doubles:
        """Return what every training sample contributes to predictions: K(x, x_i) a_i for the coefficients a.

        Args:
            solution: Whose predictions they are; for a logistic loss these are logits.
            samples: Positions or ids; all by default. A single one drops its axis.
            split: Of the samples; the training split by default.
            target: Of the prediction; all by default.

        Returns:
            (M, N, T), or (M, N) of one target: summed over N, the predictions, but for rounding.

        Raises:
            NotFoundError: The run does not store the kernel between the two splits.
            TooLargeError: The answer would be too large.
        """
        self._names.check_solution(solution)
        split = split or self.train_split
        found = attributions_of(self, solution, self.positions(samples, split), split, target)
        return found[0] if is_single(samples) else found

    def attribution_summary(
        self, solution: str, sample: str | int, split: str | None = None, *, target: int | None = None, k: int = 5
    ) -> AttributionSummary:
        """Return a prediction as sums over the training samples of each class, and those that contribute most.

        Args:
            solution: Whose prediction it is.
            sample: Its id or position.
            split: Of the sample; an id is searched in all splits that have a kernel to the training split.
            target: Of the prediction; by default the predicted class, and the first of several real targets.
            k: How many of the most helpful, and most harmful, samples are named.
        """
        self._names.check_solution(solution)
        return summary_of(self, solution, sample, self._names.split_of(sample, split), target, k)

    def solution(self, name: str) -> Array:
        """Return the (N, T) coefficients of a solution."""
        self._names.check_solution(name)
        return self.reader.solution(name)

    def solution_record(self, name: str) -> SolutionRecord:
        """Return how a solution was found and how well it solves its system."""
        self._names.check_solution(name)
        return self.reader.solution_record(name)

    def solution_extra(self, name: str, what: str) -> Array:
        """Return something else that a solution's solver found, such as ``path_ridges``; its record lists what there is.

        Raises:
            NotFoundError: There is nothing of that name.
        """
        self._names.check(f"part of solution {name}", what, self.solution_record(name).extras)
        return self.reader.solution_extra(name, what)

    def predictions(self, name: str, split: str) -> Array:
        """Return the (M, T) predictions of a solution on a split."""
        self._names.check_solution(name)
        self._names.check("split", split, self.manifest.geometry.predicted_splits(name))
        return self.reader.predictions(name, split)

    def analysis(self, name: str, file: str = "summary.json") -> bytes:
        """Return what an analysis left: ``summary.json``, ``table.csv`` or ``picture.png``."""
        self._names.check("analysis", name, [item.name for item in self.config.analyses])
        return self.reader.analysis(name, file)

    def analysis_files(self, name: str) -> list[str]:
        """Return the keys of everything an analysis left, relative to the run."""
        self._names.check("analysis", name, [item.name for item in self.config.analyses])
        return self.reader.analysis_files(name)

    def ask(self, what: str, **details: Any) -> Answer:
        """Return an answer that knows the ids of its rows and columns, and can be exported.

        ``run.ask("prediction/trntk-ridge/test", rows=slice(0, 10)).to_dataframe()``

        Args:
            what: As for `ntkpipe query`, such as ``kernel/trntk/test-train`` or ``neighbors/ck``.
            details: What goes with it: rows, columns, k, ...; see :class:`~ntkpipe.pipeline.query.questions.Details`.

        Raises:
            ConfigError: The question, or a detail, has no known form.
            NotFoundError: It names something that the run does not have.
        """
        return ask(self, what, details_of(details))

    def positions(self, index: Index, split: str) -> Positions:
        """Turn any index into positions in a split.

        Raises:
            NotFoundError: A sample id or position does not exist.
            ConfigError: The index is of no known form.
        """
        return self._names.ids(split).positions(index)

    def shape_of(self, reference: str, *, of_samples: bool = False) -> tuple[KernelGeometry, int | None]:
        """Return the kernel that a reference names, and the position of its member.

        Args:
            reference: NAME, or NAME@MEMBER.
            of_samples: What is stored per sample is meant, which a kernel between two members has for each of them.

        Raises:
            NotFoundError: There is no such kernel.
        """
        return self._names.kernel(reference, of_samples=of_samples)

    def num_features(self, reference: str) -> int:
        """Return how many numbers a kernel stores per sample: K, or G K for a layerwise kernel.

        Raises:
            NotFoundError: There is no such kernel, or it was computed exactly.
        """
        return self._names.num_features(reference)

    def num_targets(self, solution: str) -> int:
        """Return T of a solution."""
        return self._names.num_targets(solution)

    def _kernel_of(
        self, name: str | None, rows: str, layers: Sequence[str], transforms: Sequence[str]
    ) -> "KernelQuery":
        """Return a kernel with the training split; the run's first one if none is named."""
        return self.kernel(name or self.manifest.geometry.references[0], rows, layers=layers, transforms=transforms)
