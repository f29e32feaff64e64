"""What a run stores as array-like objects: indexed by position, slice, mask or sample id, read only where asked."""

from typing import TYPE_CHECKING, final

import numpy as np

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.names import Doubles, Index, MatrixName, Missing, Positions
from ntkpipe.pipeline.query.selection import is_single
from ntkpipe.storage.arrays import Array

if TYPE_CHECKING:
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

    def read(self, rows: Index, columns: Index, *, missing: Missing = "raise") -> Array:
        """Return entries like indexing does.

        Args:
            rows: Samples.
            columns: Samples.
            missing: ``nan`` returns NaN for entries that are not committed yet.
        """
        at = _positions(self._run, self.name, rows, columns)
        entries = [self._entries(positions) for positions in at]
        values = self._run.reader.entries(self.name, *entries, missing)  # type: ignore[arg-type]
        return values if self.width > 1 else _without_single(values, rows, columns)

    def _entries(self, positions: Positions) -> Positions:
        """Return the rows of the matrix that belong to samples."""
        return positions if self.width == 1 else (positions[:, None] * self.width + np.arange(self.width)).ravel()


@final
class ErrorQuery:
    """Standard errors of an estimated kernel matrix, indexed like the matrix; see :func:`standard_errors`.

    Attributes:
        shape: (N, M); (N C, M C) for a kernel of (sample, output) pairs.
    """

    def __init__(self, run: "Run", name: MatrixName) -> None:
        self._run = run
        self._matrix = KernelQuery(run, name)
        self.shape = self._matrix.shape

    def __getitem__(self, index: tuple[Index, Index]) -> Doubles:
        """Return the standard errors at all pairs of rows and columns, float64; zeros for an exact kernel.

        Raises:
            ChunkNotReadyError: Features that are needed have not been committed yet.
            NotFoundError: A position or id does not exist.
        """
        rows, columns = _pair(index, "standard errors are")
        name, width = self._matrix.name, self._matrix.width
        at = _positions(self._run, name, rows, columns)
        if width > 1:
            return np.zeros((len(at[0]) * width, len(at[1]) * width))
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
        """Return rows, (M, K), or (G, M, K) for a layerwise kernel; reads the range that spans them."""
        return self._run.reader.features(self._name, self._split, self._run.positions(index, self._split))


def _pair(index: tuple[Index, Index], what: str) -> tuple[Index, Index]:
    if not isinstance(index, tuple) or len(index) != 2:
        raise ConfigError(f"{what} indexed by rows and columns, such as [0:5, :]")
    return index


def _positions(run: "Run", name: MatrixName, rows: Index, columns: Index) -> tuple[Positions, Positions]:
    return run.positions(rows, name.rows), run.positions(columns, name.columns)


def _without_single(values: Array, rows: Index, columns: Index) -> Array:
    return np.asarray(values[tuple(0 if is_single(one) else slice(None) for one in (rows, columns))])
