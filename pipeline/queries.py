"""What a run stores as array-like objects: indexed by position, slice or sample id, read only where asked."""

from typing import TYPE_CHECKING, final

import numpy as np

from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.kernel import AbstractMatrix, Positions

if TYPE_CHECKING:
    from ntkpipe.pipeline.query import Index, Run


@final
class KernelQuery:
    """A kernel matrix of a run, indexed like an array but read tile by tile.

    Attributes:
        shape: (N, M); (N C, M C) for a kernel of (sample, output) pairs, outputs fastest.
        width: C of such a kernel, else 1.
    """

    def __init__(self, run: "Run", matrix: AbstractMatrix, pair: tuple[str, str], width: int) -> None:
        self._run = run
        self._matrix = matrix
        self._pair = pair
        self.shape = matrix.shape
        self.width = width

    def __getitem__(self, index: "tuple[Index, Index]") -> Array:
        """Return entries at all pairs of rows and columns, (M, N); a single position drops its axis.

        Rows and columns are samples: of a kernel of (sample, output) pairs each sample gives C rows, or columns.

        Raises:
            ChunkNotReadyError: A block that is needed has not been committed yet.
            NotFoundError: A position or id does not exist.
        """
        if not isinstance(index, tuple) or len(index) != 2:
            raise ConfigError("a kernel is indexed by rows and columns, such as [0:5, :]")
        rows, columns = (self._run.positions(one, split) for one, split in zip(index, self._pair, strict=True))
        if self.width > 1:
            return self._matrix.read(*(self._entries(positions) for positions in (rows, columns)))
        values = self._matrix.read(rows, columns)
        single = tuple(0 if isinstance(one, int | str | np.integer) else slice(None) for one in index)
        return np.asarray(values[single])

    def _entries(self, positions: Positions) -> Positions:
        """Return the rows of the matrix that belong to samples."""
        return (positions[:, None] * self.width + np.arange(self.width)).ravel()


@final
class ErrorQuery:
    """Standard errors of an estimated kernel matrix, indexed like the matrix.

    The two halves of the features are independent sketches. Each estimates an entry by twice its inner product; the
    estimate is their mean, and half their difference is its standard error. A single entry's has one degree of freedom
    only: look at many of them, such as their root mean square.

    Attributes:
        shape: (N, M); (N C, M C) for a kernel of (sample, output) pairs.
    """

    def __init__(self, run: "Run", reference: str, pair: tuple[str, str]) -> None:
        self._run = run
        self._kernel, _ = run.shape_of(reference)
        # A kernel between two members has features of each; every other one of the member that it is named with.
        members = self._kernel.members
        self._sides = [f"{reference}@{member}" for member in members] if self._kernel.cross else [reference] * 2
        self._pair = pair
        rows, columns = (run.manifest.geometry.splits[split].num_samples for split in pair)
        self.shape = (rows * self._kernel.width, columns * self._kernel.width)

    def __getitem__(self, index: "tuple[Index, Index]") -> Array:
        """Return the standard errors at all pairs of rows and columns, float64; zeros for an exact kernel.

        Raises:
            ChunkNotReadyError: Features that are needed have not been committed yet.
            NotFoundError: A position or id does not exist.
        """
        if not isinstance(index, tuple) or len(index) != 2:
            raise ConfigError("standard errors are indexed by rows and columns, such as [0:5, :]")
        at = [self._run.positions(one, split) for one, split in zip(index, self._pair, strict=True)]
        errors = np.zeros((len(at[0]) * self._kernel.width, len(at[1]) * self._kernel.width))
        if self._kernel.width > 1:
            return errors
        if self._kernel.sketched:
            errors = self._errors(*at)
        single = tuple(0 if isinstance(one, int | str | np.integer) else slice(None) for one in index)
        return np.asarray(errors[single])

    def _errors(self, rows: Positions, columns: Positions) -> Array:
        sides = list(zip(self._sides, self._pair, (rows, columns), strict=True))
        one, other = (self._run.features[name, split][at].astype(np.float64) for name, split, at in sides)
        half = one.shape[-1] // 2
        first, second = (
            one[..., part] @ other[..., part].swapaxes(-1, -2) for part in (slice(half), slice(half, None))
        )
        difference = first - second
        errors: Array = np.abs(difference.sum(axis=0) if difference.ndim == 3 else difference)
        if self._kernel.cosine:
            norms = [self._run.diagonal(name, split)[at] for name, split, at in sides]
            scale = np.sqrt(np.outer(*norms))
            errors = np.divide(errors, scale, out=np.zeros_like(errors), where=scale > 0)
        return errors


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
        shape, self._member = run.shape_of(name, of_samples=True)
        if shape.feature_dim is None:
            raise NotFoundError(f"{run.url}: kernel {name!r} was computed exactly and has no stored features.")
        self._run = run
        self._shape = shape
        self.num_values = shape.feature_dim * max(1, len(shape.groups))
        self._split = split

    def __getitem__(self, index: "Index") -> Array:
        """Return rows, (M, K), or (G, M, K) for a layerwise kernel; reads the range that spans them."""
        positions = self._run.positions(index, self._split)
        if not len(positions):
            return np.empty((0, self._shape.feature_dim or 0), self._run.manifest.geometry.dtype)
        start, stop = int(positions.min()), int(positions.max()) + 1
        groups: list[int | None] = list(range(len(self._shape.groups))) or [None]
        parts = [
            self._run.samples.features(self._shape.name, self._split, start, stop, member=self._member, group=group)[
                positions - start
            ]
            for group in groups
        ]
        return parts[0] if not self._shape.groups else np.stack(parts)
