"""Which analyses a run carries out on what it stored."""

from typing import Annotated, Literal

from pydantic import Field

from ntkpipe.configs.base import Section
from ntkpipe.configs.kernels.base import NAME_PATTERN


class FidelityAnalysis(Section):
    """How faithfully kernel solutions imitate the network: accuracy, Kendall tau and agreement on a test split."""

    kind: Literal["fidelity"] = "fidelity"
    name: str = Field("fidelity", pattern=NAME_PATTERN)
    split: str = "test"
    solutions: tuple[str, ...] = ()
    """Names of the solutions to compare; empty means all of the run."""
    member: str = ""
    """Of the model, whose outputs are compared with; needed if the model has several."""


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
    member: str = ""
    """Of the model, whose classes are shown; needed if the model has several."""


class StudentTAnalysis(Section):
    """Predictive Student-t distributions of kernels whose scale is inferred, and how well they are calibrated.

    Targets are Gaussian with the covariance s (K / k + noise I), k the mean of the training kernel's diagonal, and s is
    inverse-gamma(shape, rate) distributed.
    """

    kind: Literal["student-t"] = "student-t"
    name: str = Field("student-t", pattern=NAME_PATTERN)
    kernels: tuple[str, ...] = ()
    """Names of the kernels; empty means all of the run."""
    split: str = "test"
    shape: float = Field(1.0, gt=0)
    """a: 2a samples' worth of belief in the prior scale."""
    rate: float = Field(1.0, gt=0)
    """b, in squared units of the targets: b / a is their variance before any is seen."""
    noise: float = Field(1e-3, gt=0)
    """The noise's variance as a share of the kernel's mean variance."""
    interval: float = Field(0.9, gt=0, lt=1)
    """The probability of the predictive intervals whose coverage is counted."""
    max_samples: int = Field(4000, ge=1)
    """Larger training splits are restricted to this many evenly spaced samples, and the result says so."""


AnalysisConfig = Annotated[
    FidelityAnalysis | HeatmapAnalysis | SpectrumAnalysis | NeighborsAnalysis | StudentTAnalysis,
    Field(discriminator="kind"),
]
