"""From a reference to a matrix: stored tiles, or a derivation over the tiles of others."""

from collections.abc import Callable
from functools import cache
from typing import final

import numpy as np

from ntkpipe.configs.errors import NotFoundError, NumericalError
from ntkpipe.configs.kernels.derived import (
    CentredConfig,
    EnsembleConfig,
    NormalisedConfig,
    PosteriorConfig,
    PowerConfig,
    ProductConfig,
    ScaledConfig,
    SumConfig,
)
from ntkpipe.storage import derived
from ntkpipe.storage.arrays import ChunkStore, checksum
from ntkpipe.storage.committed import CommittedChunks
from ntkpipe.storage.derived import DerivedMatrix, Doubles
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.kernel import StoredMatrix
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrix import AbstractMatrix, TransposedMatrix
from ntkpipe.storage.records import Geometry, KernelGeometry
from ntkpipe.storage.tile_cache import TileCache

CACHE_BYTES = 256 * 2**20

ROUNDING = 1e-6
"""A K(x, x) that is negative, but by less than this share of the largest one, counts as zero."""


@final
class MatrixReader:
    """Every kernel matrix of a run by its reference; only what is committed. Thread safe.

    Args:
        chunks: Of the run.
        ledger: Of the run.
        geometry: Of the run.
        cache: Where decoded tiles are held. None gives each matrix a cache of its own, of arrays that whoever reads the
            matrix may write to.
    """

    def __init__(
        self, chunks: ChunkStore, ledger: Ledger, geometry: Geometry, *, cache: TileCache | None = None
    ) -> None:
        self._chunks = chunks
        self._ledger = ledger
        self._geometry = geometry
        self._cache = cache
        self._samples = SampleReader(chunks, ledger, geometry, cache=cache)

    def matrix(
        self,
        reference: str,
        row_split: str,
        column_split: str,
        *,
        component: str | None = None,
        cache_bytes: int | None = None,
    ) -> AbstractMatrix:
        """Return a matrix; a derived one costs what its parents cost, every time a tile is read.

        Args:
            reference: NAME, or NAME@MEMBER; must be known.
            row_split: Of the rows.
            column_split: Of the columns. The pair must be among those of the run; of a symmetric kernel either way round.
            component: One parameter of a layerwise kernel.
            cache_bytes: Of decoded tiles that stay in memory, in a cache that this matrix has for itself; 0 for none. None
                takes the cache of all matrices if there is one, else one of 256 MiB.

        Raises:
            ChunkNotReadyError: A pass that the matrix needs has not been committed yet.
        """
        if cache_bytes is None and self._cache is not None:
            cache: TileCache | None = self._cache
        elif cache_bytes == 0:
            cache = None
        else:
            cache = TileCache(CACHE_BYTES if cache_bytes is None else cache_bytes, read_only=False)
        source = CommittedChunks(self._chunks, self._ledger, cache)
        pair, kernel = (row_split, column_split), self._geometry.matrix(reference)[0]
        if pair not in self._geometry.pairs and kernel.symmetric:
            return TransposedMatrix(self._matrix(source, reference, pair[::-1], component))
        return self._matrix(source, reference, pair, component)

    def stored(self, reference: str, row_split: str, column_split: str) -> AbstractMatrix:
        """Return a matrix that one is made of, which every block of that one needs too; takes nothing but the geometry."""
        kernel, _ = self._geometry.matrix(reference)
        while kernel.derived is not None:
            reference = kernel.parents[0]
            kernel, _ = self._geometry.matrix(reference)
        return self.matrix(reference, row_split, column_split, cache_bytes=0)

    def num_leaves(self, reference: str) -> int:
        """Return how many stored matrices one is made of, each as often as it is read; takes nothing but the geometry."""
        kernel, _ = self._geometry.matrix(reference)
        return 1 if kernel.derived is None else sum(self.num_leaves(parent) for parent in kernel.parents)

    def _matrix(
        self, source: CommittedChunks, reference: str, pair: tuple[str, str], component: str | None
    ) -> AbstractMatrix:
        kernel, member = self._geometry.matrix(reference)
        if kernel.derived is not None:
            return self._derived(source, kernel, *pair)
        group = None if component is None else kernel.groups.index(component)
        return StoredMatrix(source, self._geometry, kernel, *pair, member=member, group=group)

    def diagonal(self, reference: str, split: str, *, estimated: bool = False) -> Doubles:
        """Return K(x, x) for every sample of a split, (N,), of a symmetric kernel of samples.

        It is exact for projected kernels too, and for their sums, products and cosines. What subtracts entries of a
        matrix, a centred kernel or a posterior, has variances that belong to the matrix, as it is estimated.

        Args:
            reference: NAME, or NAME@MEMBER; must be known.
            split: Of the samples.
            estimated: The diagonal of the matrix itself is wanted.

        Raises:
            NotFoundError: It is a sum of components, and the run has no kernel between the split and itself.
        """
        kernel, member = self._geometry.matrix(reference)
        if kernel.derived is not None:
            return self._derived_diagonal(kernel, split, estimated)
        stored_N = self._samples.diagonal(kernel.name, split, 0, self._size(split), member=member).astype(np.float64)
        found_N = self._squared_features(kernel, member, split) if estimated and kernel.sketched else stored_N
        return (
            np.divide(found_N, stored_N, out=np.zeros_like(found_N), where=stored_N > 0) if kernel.cosine else found_N
        )

    def _squared_features(self, kernel: KernelGeometry, member: int | None, split: str) -> Doubles:
        """Return the squared norms of a kernel's features, shard by shard."""
        groups: list[int | None] = list(range(len(kernel.groups))) or [None]
        norms_N = np.zeros(self._size(split))
        for start in range(0, len(norms_N), self._geometry.shard_rows):
            stop = min(start + self._geometry.shard_rows, len(norms_N))
            for group in groups:
                rows = self._samples.features(kernel.name, split, start, stop, member=member, group=group)
                norms_N[start:stop] += np.square(rows, dtype=np.float64).sum(axis=1)
        return norms_N

    def _size(self, split: str) -> int:
        return self._geometry.splits[split].num_samples

    def _statistic(self, kernel: KernelGeometry, split: str) -> Doubles:
        values: Doubles = self._samples.statistic(kernel.name, split, 0, self._size(split))
        return values

    def _derived(
        self, source: CommittedChunks, kernel: KernelGeometry, row_split: str, column_split: str
    ) -> DerivedMatrix:
        components: list[str | None] = [None] * len(kernel.parents)
        if isinstance(kernel.derived, SumConfig):
            components = [term.component for term in kernel.derived.terms]
        parents = [
            self._matrix(source, reference, (row_split, column_split), component)
            for reference, component in zip(kernel.parents, components, strict=True)
        ]
        combine, known = self._combine(kernel, row_split, column_split)
        return DerivedMatrix(
            parents,
            combine,
            symmetric=kernel.symmetric and row_split == column_split,
            known=known,
            by_tiles=isinstance(kernel.derived, PosteriorConfig),
        )

    def _combine(
        self, kernel: KernelGeometry, row_split: str, column_split: str
    ) -> tuple[derived.Combine, Callable[[], str]]:
        """Return the function that makes entries, and what tells its versions: of the very numbers that it holds."""
        train = self._geometry.train_split
        match kernel.derived:
            case SumConfig(terms=terms):
                return derived.weighted_sum([term.weight for term in terms]), str
            case EnsembleConfig():
                return derived.weighted_sum([1 / len(kernel.parents)] * len(kernel.parents)), str
            case ProductConfig():
                return derived.product, str
            case PowerConfig(exponent=exponent):
                return derived.power(exponent), str
            case ScaledConfig():
                scale = self._scale(kernel)
                return derived.weighted_sum([scale]), lambda: repr(scale)
            case NormalisedConfig():
                sides = [self._variances(kernel, split) for split in (row_split, column_split)]
                return derived.normalised(*sides), cache(lambda: "-".join(map(checksum, sides)))
            case CentredConfig():
                rows_N, columns_M = (self._statistic(kernel, split)[:, 0] for split in (row_split, column_split))
                mean = float(self._statistic(kernel, train).mean())
                known = cache(lambda: f"{checksum(rows_N)}-{checksum(columns_M)}-{mean!r}")
                return derived.centred(rows_N, columns_M, mean), known
            case PosteriorConfig():
                read_rows = self._slices(kernel, row_split)
                same = row_split == column_split
                combine = derived.posterior(read_rows, read_rows if same else self._slices(kernel, column_split))
                splits = dict.fromkeys((row_split, column_split))
                # Rows are read with every tile, as they are then.
                return combine, lambda: "-".join(self._samples.statistic_version(kernel.name, one) for one in splits)
        raise AssertionError(f"{kernel.name} is not derived")

    def _scale(self, kernel: KernelGeometry) -> float:
        assert isinstance(kernel.derived, ScaledConfig)
        if kernel.derived.factor is not None:
            return kernel.derived.factor
        mean = float(self.diagonal(kernel.parents[0], self._geometry.train_split).mean())
        if not mean > 0:
            raise NumericalError(
                f"kernel {kernel.name!r}: the mean of K(x, x) of {kernel.parents[0]!r} is {mean}, which cannot be divided by. "
                "Give a factor."
            )
        return 1 / mean

    def _variances(self, kernel: KernelGeometry, split: str) -> Doubles:
        """Return K(x, x) of the matrix that a kernel normalises."""
        what = f"kernel {kernel.name!r} cannot be normalised: K(x, x) of {kernel.parents[0]!r}"
        return checked_variances(self.diagonal(kernel.parents[0], split), what, split)

    def _slices(self, kernel: KernelGeometry, split: str) -> Callable[[slice], Doubles]:
        def read(rows: slice) -> Doubles:
            values: Doubles = self._samples.statistic(kernel.name, split, rows.start, rows.stop)
            return values

        return read

    def _derived_diagonal(self, kernel: KernelGeometry, split: str, estimated: bool) -> Doubles:
        if isinstance(kernel.derived, SumConfig) and any(term.component for term in kernel.derived.terms):
            return self._diagonal_of_components(kernel, split)
        estimated = estimated or isinstance(kernel.derived, CentredConfig | PosteriorConfig)
        diagonals = [self.diagonal(parent, split, estimated=estimated) for parent in kernel.parents]
        found_N = diagonals[0]
        match kernel.derived:
            case NormalisedConfig():
                exact_N = self._variances(kernel, split)
                return np.divide(found_N, exact_N, out=np.zeros_like(found_N), where=exact_N > 0)
            case CentredConfig():
                mean = float(self._statistic(kernel, self._geometry.train_split).mean())
                found_N += mean - 2 * self._statistic(kernel, split)[:, 0]
                return found_N
            case PosteriorConfig():
                found_N -= np.square(self._statistic(kernel, split)).sum(axis=1)
                return found_N
        combine, _ = self._combine(kernel, split, split)
        return combine(diagonals, slice(None), slice(None))

    def _diagonal_of_components(self, kernel: KernelGeometry, split: str) -> Doubles:
        """Return the diagonal from the matrix: per sample only that of the whole kernel is stored."""
        if (split, split) not in self._geometry.pairs:
            raise NotFoundError(
                f"K(x, x) of kernel {kernel.name!r} is not stored for split {split!r}, because it is a sum of components. Add "
                f"the pair [{split}, {split}] to data.pairs, or give the components as a kernel of their own, with its "
                "option parameters."
            )
        return self.matrix(kernel.name, split, split, cache_bytes=0).diagonal().astype(np.float64)


def checked_variances(diagonal_N: Doubles, what: str, split: str) -> Doubles:
    """Return K(x, x), values that rounding has made negative as 0.

    Raises:
        NumericalError: One is negative beyond rounding.
    """
    if not len(diagonal_N):
        return diagonal_N
    lowest = int(diagonal_N.argmin())
    if diagonal_N[lowest] < -ROUNDING * np.abs(diagonal_N).max():
        raise NumericalError(
            f"{what} is {diagonal_N[lowest]:.3g} at position {lowest} of split {split!r}. A kernel with a negative variance is "
            "not positive; look at its weights, or at how well it is estimated."
        )
    return np.maximum(diagonal_N, 0.0)
