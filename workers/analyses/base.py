"""The analysis seam: from what a run stored to a table, a summary and a picture."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.errors import ConfigError

Scalar = str | int | float | bool | None


class RunView(Protocol):
    """What an analysis may see of a run. Splits, kernels and solutions go by their names."""

    @property
    def train_split(self) -> str:
        """The split in which solutions live."""

    @property
    def kernel_names(self) -> tuple[str, ...]:
        """The kernels of the run, in the order of its configuration."""

    @property
    def solution_names(self) -> tuple[str, ...]:
        """The solutions of the run, in the order of its configuration."""

    def sample_ids(self, split: str) -> list[str]:
        """The (N,) ids of a split."""

    def num_samples(self, split: str) -> int:
        """N of a split."""

    def classes(self, split: str) -> npt.NDArray[np.int64] | None:
        """The (N,) integer classes of a split, None when it has no classes."""

    def values(self, split: str) -> npt.NDArray[np.float64] | None:
        """The (N, T) real targets of a split, None when its labels are classes or absent."""

    def inputs(self, split: str, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The model inputs at some positions of a split, (M, ...)."""

    def network_outputs(self, split: str, member: str = "") -> npt.NDArray[np.float64]:
        """The (N, C) outputs of the network."""

    def predictions(self, solution: str, split: str) -> npt.NDArray[np.float64]:
        """The (N, T) predictions of a stored solution."""

    def kernel(
        self,
        name: str,
        row_split: str,
        rows: npt.NDArray[np.int64],
        column_split: str,
        columns: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float64]:
        """Entries of a kernel matrix at the given positions, (M, N)."""

    def diagonal(self, name: str, split: str) -> npt.NDArray[np.float64]:
        """The (N,) kernel of every sample of a split with itself, as normalised as the matrix."""


@dataclass(frozen=True, slots=True)
class AnalysisResult:
    """What an analysis leaves in the run, under ``analyses/<name>/``."""

    summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]]
    """Written to ``summary.json``."""
    table: list[dict[str, Scalar]] = field(default_factory=list)
    """Written to ``table.csv``; every row has the same keys."""
    picture: bytes | None = None
    """PNG, written to ``picture.png``."""


class AbstractAnalysis(ABC):
    """One analysis of the catalogue, constructed from its configuration section."""

    @abstractmethod
    def compute(self, run: RunView) -> AnalysisResult:
        """Carry out the analysis; reads the run through ``run`` only."""


def require_classes(run: RunView, split: str, analysis: str) -> npt.NDArray[np.int64]:
    """Return the classes of a split.

    Raises:
        ConfigError: The split has none.
    """
    classes = run.classes(split)
    if classes is None:
        raise ConfigError(f"analysis {analysis!r} compares classes, but split {split!r} has no integer labels.")
    return classes


def evenly_spaced(num_samples: int, at_most: int) -> npt.NDArray[np.int64]:
    """Return at most so many positions, evenly spaced from the first sample to the last."""
    if num_samples <= at_most:
        return np.arange(num_samples)
    return np.unique(np.linspace(0, num_samples - 1, at_most).round().astype(np.int64))
