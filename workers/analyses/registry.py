"""From an analysis section to an analysis."""

from ntkpipe.configs.analyses import (
    AnalysisConfig,
    FidelityAnalysis,
    HeatmapAnalysis,
    NeighborsAnalysis,
    SpectrumAnalysis,
    StudentTAnalysis,
)
from ntkpipe.workers.analyses.base import AbstractAnalysis
from ntkpipe.workers.analyses.fidelity import Fidelity
from ntkpipe.workers.analyses.heatmap import Heatmap
from ntkpipe.workers.analyses.neighbors import Neighbors
from ntkpipe.workers.analyses.spectrum import Spectrum
from ntkpipe.workers.analyses.student_t import StudentT


def make_analysis(config: AnalysisConfig) -> AbstractAnalysis:
    """Return the analysis of a configuration."""
    match config:
        case FidelityAnalysis():
            return Fidelity(config)
        case HeatmapAnalysis():
            return Heatmap(config)
        case SpectrumAnalysis():
            return Spectrum(config)
        case NeighborsAnalysis():
            return Neighbors(config)
        case StudentTAnalysis():
            return StudentT(config)
