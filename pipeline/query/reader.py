"""The seam below :class:`Run`: who reads storage itself, and who asks a service that does, answer the same questions.

Everything here goes by positions and by names that were checked. Readers are used by many threads at once.
"""

from abc import ABC, abstractmethod

from ntkpipe.pipeline.query.names import Doubles, MatrixName, Missing, Nearest, Positions, Spectrum
from ntkpipe.pipeline.status import RunStatus
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.solutions import SolutionRecord


class AbstractRunReader(ABC):
    """What a run can be asked.

    Attributes:
        url: Of the run.
        manifest: What the run is.

    Raises:
        ChunkNotReadyError: From every method: something that is needed has not been committed yet; the message names it.
        CorruptChunkError: From every method: what was committed is damaged or gone.
        StorageError: From every method: the store, or the service, fails.
    """

    url: str
    manifest: Manifest

    @abstractmethod
    def status(self) -> RunStatus:
        """Return how far the run is."""

    @abstractmethod
    def ids(self, split: str) -> list[str]:
        """Return the (N,) ids of a split."""

    @abstractmethod
    def labels(self, split: str) -> Array | None:
        """Return the (N,) classes or (N, T) targets of a split, None without labels."""

    @abstractmethod
    def outputs(self, split: str, member: str | None, rows: Positions) -> Array:
        """Return the network's (M, C) outputs; ``member`` is None for a model on its own."""

    @abstractmethod
    def entries(self, name: MatrixName, rows: Positions, columns: Positions, missing: Missing) -> Array:
        """Return entries at all pairs of positions, (M, N), in the run's precision.

        Rows and columns are rows of the matrix: of a kernel of (sample, output) pairs ``position * width + output``.
        """

    @abstractmethod
    def errors(self, name: MatrixName, rows: Positions, columns: Positions) -> Doubles:
        """Return the standard errors of entries of a projected kernel without transforms, (M, N)."""

    @abstractmethod
    def features(self, kernel: str, split: str, rows: Positions) -> Array:
        """Return stored features, (M, K), or (G, M, K) for a layerwise kernel."""

    @abstractmethod
    def diagonal(self, kernel: str, split: str) -> Array:
        """Return K(x, x) before any normalisation, (N,), or (N, C) for a kernel of (sample, output) pairs."""

    @abstractmethod
    def nearest(
        self, name: MatrixName, rows: Positions, k: int, *, opposed: bool = False, label: int | None = None
    ) -> Nearest:
        """Return the training samples with the largest kernel values to some samples; a sample is not its own neighbour.

        Where samples have differently many neighbours, those that are not there have the position -1 and the value NaN.

        Args:
            name: Of a matrix whose columns are the training split.
            rows: Positions in the split of its rows.
            k: How many; fewer are returned where there are not so many.
            opposed: The smallest values are wanted.
            label: Only training samples of this class.
        """

    @abstractmethod
    def spectrum(self, name: MatrixName, max_samples: int) -> Spectrum:
        """Return the eigenvalues of a symmetric matrix of the training split, of at most so many evenly spaced samples."""

    @abstractmethod
    def solution(self, name: str) -> Array:
        """Return the (N, T) coefficients of a solution."""

    @abstractmethod
    def solution_record(self, name: str) -> SolutionRecord:
        """Return how a solution was found and how well it solves its system."""

    @abstractmethod
    def solution_extra(self, name: str, what: str) -> Array:
        """Return something else that a solution's solver found."""

    @abstractmethod
    def predictions(self, name: str, split: str) -> Array:
        """Return the (M, T) predictions of a solution on a split."""

    @abstractmethod
    def attributions(self, solution: str, split: str, rows: Positions, target: int | None = None) -> Doubles:
        """Return what every training sample contributes to a solution's predictions, (M, N, T): they sum to it over N.

        That is K(x, x_i) a_i for the coefficients a of a solution; (M, N) of one target.
        """

    @abstractmethod
    def analysis(self, name: str, file: str) -> bytes:
        """Return what an analysis left."""

    @abstractmethod
    def analysis_files(self, name: str) -> list[str]:
        """Return the keys of everything an analysis left, relative to the run."""
