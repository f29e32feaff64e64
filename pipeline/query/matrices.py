"""What a run stores as array-like objects: indexed by position, slice, mask or sample id, read only where asked."""

from dataclasses import replace
from typing import TYPE_CHECKING, final

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.explained import neighbors_by_class_of, neighbors_of
from ntkpipe.pipeline.query.formats import Answer
from ntkpipe.pipeline.query.names import Doubles, Index, MatrixName, Missing, Neighbor, Positions, Spectrum, Transform
from ntkpipe.pipeline.query.selection import is_single, rows_of_samples
from ntkpipe.pipeline.query.spectra import DEFAULT_SAMPLES
from ntkpipe.pipeline.query.transforms import checked_transforms
from ntkpipe.pipeline.query.views import names_of_rows, to_dask, to_xarray
from ntkpipe.storage.arrays import Array

if TYPE_CHECKING:
    import dask.array
    import pandas
    import pyarrow
    import xarray

    from ntkpipe.pipeline.query.run import Run


@final
class KernelQuery:
    """A kernel matrix of a run, indexed like an array but read tile by tile.

    Attributes:
        name: Which matrix it is.
        shape: (N, M); (N C, M C) for a kernel of (sample, output) pairs, outputs fastest.
        width: C of such a kernel, else 1.
    """

    def __init__(self, run: "Run", name: MatrixName) -> None:
        self.name = name
        self.width = run.shape_of(name.kernel)[0].width
        sizes = (run.manifest.geometry.splits[split].num_samples for split in (name.rows, name.columns))
        rows, columns = (size * self.width for size in sizes)
        self.shape = (rows, columns)
        self._run = run

    def __getitem__(self, index: tuple[Index, Index]) -> Array:
        """Return entries at all pairs of rows and columns, (M, N); a single position drops its axis.

        Rows and columns are samples: of a kernel of (sample, output) pairs each sample gives C rows, or columns.

        Raises:
            ChunkNotReadyError: A block that is needed has not been committed yet.
            NotFoundError: A position or id does not exist.
        """
        return self.read(*_pair(index, "a kernel is"))

    def cosine(self) -> "KernelQuery":
        """Return K(x, x') / sqrt(K(x, x) K(x', x')), 0 where K(x, x) is 0; computed when it is read.

        The K(x, x) are the exact ones of :meth:`Run.diagonal` where they are known, also of a projected kernel.

        Raises:
            ConfigError: The kernel is not a symmetric one of samples.
        """
        return self._transformed("cosine")

    def centred(self) -> "KernelQuery":
        """Return K(x, x') - m(x) - m(x') + mean m, m(x) the mean of K(x, .) over the training split.

        The means take one pass over the matrix, when entries are first read; they are kept.

        Raises:
            ConfigError: The kernel is not a symmetric one of samples.
        """
        return self._transformed("centred")

    def _transformed(self, transform: Transform) -> "KernelQuery":
        kernel, _ = self._run.shape_of(self.name.kernel)
        transforms = checked_transforms(kernel, (*self.name.transforms, transform))
        return KernelQuery(self._run, replace(self.name, transforms=transforms))

    def read(self, rows: Index, columns: Index, *, missing: Missing = "raise") -> Array:
        """Return entries like indexing does.

        Args:
            rows: Samples.
            columns: Samples.
            missing: ``nan`` returns NaN for entries that are not committed yet.
        """
        at = _positions(self._run, self.name, rows, columns)
        at_rows, at_columns = (rows_of_samples(positions, self.width) for positions in at)
        values = self._run.reader.entries(self.name, at_rows, at_columns, missing)
        return values if self.width > 1 else _without_single(values, rows, columns)

    def neighbors(
        self, samples: Index, k: int = 5, *, opposed: bool = False, label: int | None = None
    ) -> list[list[Neighbor]]:
        """Return the training samples with the largest values to each of some samples, reading every tile once.

        Args:
            samples: Of the rows. A sample of the training split is not its own neighbour.
            k: How many.
            opposed: The smallest values are wanted, the most opposed sample first.
            label: Only training samples of this class.

        Raises:
            ConfigError: Columns are not the training split, or rows no samples.
            NotFoundError: A sample or a class does not exist.
        """
        return neighbors_of(self._run, self.name, samples, k, opposed=opposed, label=label)

    def neighbors_by_class(self, sample: str | int, k: int = 5, *, opposed: bool = False) -> dict[int, list[Neighbor]]:
        """Return the same of one sample for every class of the training split, with one pass over its row."""
        return neighbors_by_class_of(self._run, self.name, sample, k, opposed=opposed)

    def spectrum(self, max_samples: int = DEFAULT_SAMPLES) -> Spectrum:
        """Return the eigenvalues, of at most so many evenly spaced samples, and how much of the labels they explain.

        Raises:
            ConfigError: It is not a symmetric kernel of the training split with itself.
            TooLargeError: ``max_samples`` is too large.
        """
        if self.name.columns != self._run.train_split:
            raise ConfigError(f"spectra are of split {self._run.train_split!r}, found {self.name.columns!r}.")
        return self._run.reader.spectrum(self.name, max_samples)

    def answer(self, rows: Index = slice(None), columns: Index = slice(None), *, missing: Missing = "raise") -> Answer:
        """Return entries with the ids of their rows and columns, both axes kept; memory is that of the entries.

        Args:
            rows: Samples.
            columns: Samples.
            missing: As of :meth:`read`.
        """
        at = _positions(self._run, self.name, rows, columns)
        row_ids, column_ids = (
            names_of_rows([self._run.ids(split)[position] for position in positions], self.width)
            for split, positions in zip((self.name.rows, self.name.columns), at, strict=True)
        )
        return Answer(self.read(*at, missing=missing), row_ids, column_ids)

    def to_dataframe(self, rows: Index = slice(None), columns: Index = slice(None)) -> "pandas.DataFrame":
        """Return entries as a table of pandas, with ids as its index and columns."""
        return self.answer(rows, columns).to_dataframe()

    def to_arrow(self, rows: Index = slice(None), columns: Index = slice(None)) -> "pyarrow.Table":
        """Return entries as a table of Arrow: a column ``sample`` of ids, and one for each column of the kernel."""
        return self.answer(rows, columns).to_arrow()

    def to_dask(self, *, missing: Missing = "raise") -> "dask.array.Array":
        """Return the whole matrix as an array of dask, whose chunks are the tiles; they are read where they are computed.

        Threads share what the run keeps in memory. Processes open the run again by its URL.

        Args:
            missing: As of :meth:`read`.

        Raises:
            ConfigError: dask is not installed.
        """
        return to_dask(self, self._run, missing)

    def to_xarray(self, *, missing: Missing = "raise") -> "xarray.DataArray":
        """Return the same with the names of the splits as dimensions and sample ids as coordinates.

        The columns of a split with itself are called ``SPLIT_columns``. Attributes tell kernel, layers, transforms and run.

        Args:
            missing: As of :meth:`read`.

        Raises:
            ConfigError: dask or xarray is not installed.
        """
        return to_xarray(self, self._run, missing)


@final
class ErrorQuery:
    """Standard errors of an estimated kernel matrix, indexed like the matrix; see :func:`standard_errors`.

    Attributes:
        shape: (N, M); (N C, M C) for a kernel of (sample, output) pairs.
        width: C of such a kernel, else 1.
    """

    def __init__(self, run: "Run", name: MatrixName) -> None:
        self._run = run
        self._matrix = KernelQuery(run, name)
        self.shape = self._matrix.shape
        self.width = self._matrix.width

    def __getitem__(self, index: tuple[Index, Index]) -> Doubles:
        """Return the standard errors at all pairs of rows and columns, float64; zeros for an exact kernel.

        Raises:
            ChunkNotReadyError: Features that are needed have not been committed yet.
            NotFoundError: A position or id does not exist.
        """
        rows, columns = _pair(index, "standard errors are")
        name = self._matrix.name
        at = _positions(self._run, name, rows, columns)
        if self.width > 1:
            return np.zeros((len(at[0]) * self.width, len(at[1]) * self.width))
        return _without_single(self._run.reader.errors(name, *at), rows, columns)


@final
class FeatureQuery:
    """Stored features by kernel and split."""

    def __init__(self, run: "Run") -> None:
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

    def __init__(self, run: "Run", name: str, split: str) -> None:
        self.num_values = run.num_features(name)
        self._run = run
        self._name = name
        self._split = split

    def __getitem__(self, index: Index) -> Array:
        """Return rows, (M, K), or (G, M, K) for a layerwise kernel; reads the chunks that hold any of them."""
        return self._run.reader.features(self._name, self._split, self._run.positions(index, self._split))


def _pair(index: tuple[Index, Index], what: str) -> tuple[Index, Index]:
    if not isinstance(index, tuple) or len(index) != 2:
        raise ConfigError(f"{what} indexed by rows and columns, such as [0:5, :]")
    return index


def _positions(run: "Run", name: MatrixName, rows: Index, columns: Index) -> tuple[Positions, Positions]:
    return run.positions(rows, name.rows), run.positions(columns, name.columns)


def _without_single(values: Array, rows: Index, columns: Index) -> Array:
    return np.asarray(values[tuple(0 if is_single(one) else slice(None) for one in (rows, columns))])
