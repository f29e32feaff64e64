"""The pictures of a process: which matrix in which order, made in the background and kept."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Final, final

from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.pipeline.pictures import clusters
from ntkpipe.pipeline.pictures.comparison import Comparison, check_comparable, compare
from ntkpipe.pipeline.pictures.orders import ORDERS, Order, OrderName, class_order, id_order, stored_order
from ntkpipe.pipeline.pictures.overview import Overview, PictureLimits
from ntkpipe.pipeline.pictures.progress import Progress
from ntkpipe.pipeline.pictures.reading import (
    check_cost,
    matrix_of,
    needs_of_comparison,
    needs_of_order,
    needs_of_overview,
    num_bytes,
)
from ntkpipe.pipeline.pictures.workshop import Building, Workshop
from ntkpipe.pipeline.query.matrices import KernelQuery
from ntkpipe.pipeline.query.names import MatrixName, Spectrum
from ntkpipe.pipeline.query.run import Run

MAX_BYTES: Final = 512 * 2**20
NUM_CLUSTERS: Final = 10
"""Where there are no classes to count."""
REFRESH_SECONDS: Final = 5.0
STALE_FACTOR: Final = 5.0
"""A picture of a matrix that is still being computed is made again after so many times what it took."""


@final
@dataclass(frozen=True, slots=True)
class _Picture:
    overview: Overview
    refresh_seconds: float

    @property
    def nbytes(self) -> int:
        return self.overview.nbytes

    @property
    def stale_after(self) -> float:
        if not self.overview.num_missing_entries:
            return math.inf
        return max(self.refresh_seconds, STALE_FACTOR * self.overview.seconds)


@final
@dataclass(frozen=True, slots=True)
class _Ordered:
    order: Order
    stale_after: float = math.inf

    @property
    def nbytes(self) -> int:
        return self.order.positions.nbytes


@final
@dataclass(frozen=True, slots=True)
class _Compared:
    comparison: Comparison
    nbytes: int = 256
    stale_after: float = math.inf


@final
@dataclass(frozen=True, slots=True)
class _Decomposed:
    spectrum: Spectrum
    stale_after: float = math.inf

    @property
    def nbytes(self) -> int:
        energy = self.spectrum.label_energy
        return self.spectrum.eigenvalues.nbytes + (0 if energy is None else energy.nbytes)


@final
class Gallery:
    """Pictures of kernel matrices, orders of samples, comparisons and spectra of kernels. Thread safe.

    Each is made once, by a thread of its own, and told as :class:`Building` until then. Runs are told apart by their id,
    so that a run that takes the place of another one has pictures of its own.

    Args:
        max_bytes: Of pictures that are kept in memory.
        limits: Of what one may cost.
        wait_seconds: For which who asks waits for what is not ready.
        refresh_seconds: After which the picture of a matrix that is still being computed is made again, at the earliest.
    """

    def __init__(
        self,
        max_bytes: int = MAX_BYTES,
        limits: PictureLimits | None = None,
        *,
        wait_seconds: float = 0.5,
        refresh_seconds: float = REFRESH_SECONDS,
    ) -> None:
        self._workshop = Workshop(max_bytes, wait_seconds=wait_seconds)
        self._limits = limits or PictureLimits()
        self._refresh_seconds = refresh_seconds

    @property
    def num_bytes(self) -> int:
        """Of what is kept."""
        return self._workshop.num_bytes

    def overview(self, run: Run, query: KernelQuery, order: str) -> Overview | Building:
        """Return a matrix that can be drawn, rows and columns in an order.

        Raises:
            ConfigError: The samples cannot be ordered in this way.
            TooLargeError: It would have to read more than it may.
            ChunkNotReadyError: What the order is made from is not committed yet.
            CorruptChunkError: A block is damaged.
        """
        checked = checked_order(order)
        splits = (query.name.rows, query.name.columns)
        for split in dict.fromkeys(splits):
            check_possible(run, query.name, split, checked)

        def make(progress: Progress) -> _Picture:
            self._check(num_bytes(run, needs_of_overview(run, query.name, checked)))
            made = {split: make_order(run, query.name, split, checked, progress) for split in dict.fromkeys(splits)}
            orders = {split: order.of_entries(query.width) for split, order in made.items()}
            rows, columns = (orders[split] for split in splits)
            matrix, streamed = (matrix_of(run, query.name, cached=cached) for cached in (True, False))
            overview = Overview(matrix, rows, columns, self._limits, progress, streamed=streamed)
            return _Picture(overview, self._refresh_seconds)

        found = self._workshop.ask((*_key(run), query.name, checked), make)
        return found if isinstance(found, Building) else found.overview

    def order(self, run: Run, query: KernelQuery, split: str, order: str) -> Order | Building:
        """Return the order of the samples of a split.

        Raises:
            ConfigError: The samples cannot be ordered in this way.
            TooLargeError: It would have to read more than it may.
            ChunkNotReadyError: What it is made from is not committed yet.
        """
        checked = checked_order(order)
        check_possible(run, query.name, split, checked)

        def make(progress: Progress) -> _Ordered:
            self._check(num_bytes(run, needs_of_order(run, query.name, split, checked)))
            return _Ordered(make_order(run, query.name, split, checked, progress))

        name = query.name if checked == "cluster" else None
        found = self._workshop.ask((*_key(run), "order", name, split, checked), make)
        return found if isinstance(found, Building) else found.order

    def comparison(self, one: Run, first: MatrixName, other: Run, second: MatrixName) -> Comparison | Building:
        """Return how alike two kernels of the same training samples are.

        Raises:
            RunMismatchError: They are of other samples.
            TooLargeError: It would have to read more than it may.
            ChunkNotReadyError: A block that is needed is not committed yet.
        """
        check_comparable(one, first, other, second)

        def make(progress: Progress) -> _Compared:
            needs = needs_of_comparison(one, first, other, second)
            self._check(num_bytes(one, needs[0]) + num_bytes(other, needs[1]))
            return _Compared(compare(matrix_of(one, first), matrix_of(other, second), progress))

        found = self._workshop.ask((*_key(one), first, *_key(other), second), make)
        return found if isinstance(found, Building) else found.comparison

    def spectrum(
        self, run: Run, name: MatrixName, max_samples: int, version: str, *, patient: bool = False
    ) -> Spectrum | Building:
        """Return the eigenvalues of a kernel.

        Args:
            run: That has it.
            name: Of its matrix of the training split.
            max_samples: As of :meth:`Run.spectrum`.
            version: Of what is read; another one makes another spectrum.
            patient: Wait for it.

        Raises:
            ConfigError: It has none.
            TooLargeError: The matrix would be too large to decompose.
            ChunkNotReadyError: A block that is needed is not committed yet.
        """
        found = self._workshop.ask(
            (*_key(run), "spectrum", name, max_samples, version),
            lambda progress: _Decomposed(run.reader.spectrum(name, max_samples)),
            patient=patient,
        )
        return found if isinstance(found, Building) else found.spectrum

    def close(self) -> None:
        """Give up what is being made."""
        self._workshop.close()

    def _check(self, asked: int) -> None:
        check_cost(asked, self._limits.max_read_bytes)


def checked_order(order: str) -> OrderName:
    """Return an order, if it is known.

    Raises:
        ConfigError: It is not.
    """
    for known in ORDERS:
        if order == known:
            return known
    raise ConfigError(f"there is no order {order!r}; choose one of {', '.join(ORDERS)}.")


def possible_orders(run: Run, name: MatrixName) -> list[OrderName]:
    """Return the orders in which a matrix can be drawn."""
    possible = []
    for order in ORDERS:
        try:
            for split in dict.fromkeys((name.rows, name.columns)):
                check_possible(run, name, split, order)
        except (ConfigError, NotFoundError):
            continue
        possible.append(order)
    return possible


def check_possible(run: Run, name: MatrixName, split: str, order: OrderName) -> None:
    """Refuse an order that the samples of a split do not have.

    Raises:
        ConfigError: There are no classes, or the kernel tells no clusters.
    """
    geometry = run.manifest.geometry
    if order == "class" and geometry.splits[split].labels != "classes":
        raise ConfigError(f"split {split!r} has no classes to be ordered by; choose another order.")
    if order == "cluster":
        kernel, _ = run.shape_of(name.kernel)
        if not kernel.symmetric or kernel.width > 1:
            raise ConfigError(f"kernel {name.kernel!r} is no symmetric kernel of samples, so it has no clusters.")
        for pair in {(geometry.train_split, geometry.train_split), (split, geometry.train_split)}:
            run.kernel(name.kernel, *pair)


def make_order(run: Run, name: MatrixName, split: str, order: OrderName, progress: Progress) -> Order:
    """Return the order of the samples of a split, which must be possible."""
    match order:
        case "stored":
            return stored_order(len(run.ids(split)))
        case "id":
            return id_order(run.ids(split))
        case "class":
            return class_order(run.labels(split))
        case "cluster":
            return _cluster_order(run, name, split, progress)


def _cluster_order(run: Run, name: MatrixName, split: str, progress: Progress) -> Order:
    train = run.train_split
    matrix = matrix_of(run, replace(name, rows=train, columns=train))
    at = clusters.landmarks(matrix.size, matrix.block_rows)
    progress.expect(matrix.num_tiles(columns=at))
    classes = run.manifest.geometry.splits[train]
    num_clusters = classes.num_targets if classes.labels == "classes" else NUM_CLUSTERS
    embedding, embedded_NR = clusters.embed(matrix, num_clusters, progress.advance)
    if split != train:
        other = matrix_of(run, replace(name, rows=split, columns=train))
        progress.expect(other.num_tiles(columns=at))
        embedded_NR = clusters.embedded(other, embedding, progress.advance)
    return embedding.order(embedded_NR)


def _key(run: Run) -> tuple[Hashable, ...]:
    return run.url, run.manifest.run_id
