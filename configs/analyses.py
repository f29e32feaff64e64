"""Which analyses a run carries out on what it stored."""

from typing import Annotated, Literal

from pydantic import Field

from ntkpipe.configs.base import Section
from ntkpipe.configs.kernels import NAME_PATTERN


class FidelityAnalysis(Section):
    """How faithfully kernel solutions imitate the network: accuracy, Kendall tau and agreement on a test split."""

    kind: Literal["fidelity"] = "fidelity"
    name: str = Field("fidelity", pattern=NAME_PATTERN)
    split: str = "test"
    solutions: tuple[str, ...] = ()
    """Names of the solutions to compare; empty means all of the run."""


class HeatmapAnalysis(Section):
    """A picture of a kernel matrix, samples sorted by class."""

    kind: Literal["heatmap"] = "heatmap"
    name: str = Field("heatmap", pattern=NAME_PATTERN)
    kernel: str
    max_samples: int = Field(2000, ge=2)
    """At most this many samples, evenly spaced through the split, are drawn."""


class SpectrumAnalysis(Section):
    """Eigenvalues of kernel matrices and how much of the labels their leading eigenvectors explain."""

    kind: Literal["spectrum"] = "spectrum"
    name: str = Field("spectrum", pattern=NAME_PATTERN)
    kernels: tuple[str, ...] = ()
    """Names of the kernels; empty means all of the run."""
    max_samples: int = Field(2000, ge=2)
    """Larger matrices are restricted to this many evenly spaced samples, and the result says so."""


class NeighborsAnalysis(Section):
    """Test images with the training images most similar to them under a kernel."""

    kind: Literal["neighbors"] = "neighbors"
    name: str = Field("neighbors", pattern=NAME_PATTERN)
    kernel: str
    split: str = "test"
    samples: int = Field(10, ge=1, le=100)
    """How many test images are shown: half of them misclassified where there are enough, then the first correct ones."""
    neighbors: int = Field(5, ge=1, le=20)


AnalysisConfig = Annotated[
    FidelityAnalysis | HeatmapAnalysis | SpectrumAnalysis | NeighborsAnalysis, Field(discriminator="kind")
]
