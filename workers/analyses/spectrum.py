"""Eigenvalues of kernel matrices, and how much of the labels their leading eigenvectors explain."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import SpectrumAnalysis
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, evenly_spaced
from ntkpipe.workers.analyses.decomposition import decompose, one_hot
from ntkpipe.workers.analyses.naming import summary_keys
from ntkpipe.workers.analyses.plotting import count_of_samples, line_style, new_figure, png

Array = npt.NDArray[Any]

RELATIVE_RIDGE = 1e-3
"""Of the effective dimension, as a share of the mean eigenvalue."""

ENERGY_COUNTS = (1, 5, 10, 50, 100, 500, 1000)
"""Of leading eigenvectors, whose share of the label energy the summary tells."""

TABLE_ROWS = 50


@dataclass(frozen=True, slots=True)
class _Spectrum:
    eigenvalues: Array
    """(N,), largest first."""
    energy: Array | None
    """(N,) share of the centred one-hot labels in the first q eigenvectors."""


@final
class Spectrum(AbstractAnalysis):
    """Full float64 eigendecompositions: O(N^3), so that large splits are thinned out and the summary says so.

    For a kernel matrix K of N samples, made exactly symmetric, with eigenvalues l_1 >= ... >= l_N and eigenvectors v_i:

    * the condition number l_1 / l_N, absent unless all eigenvalues are positive;
    * the effective dimension sum_i l_i / (l_i + r) at the ridge r = 0.001 tr(K)/N, rounding below 0 taken for 0;
    * the label energy of the first q eigenvectors, sum_{i <= q} |Y' v_i|^2 / |Y|^2, where Y holds the one-hot classes
      minus their column means: a constant vector explains no class.
    """

    def __init__(self, config: SpectrumAnalysis) -> None:
        self._config = config

    def compute(self, run: RunView) -> AnalysisResult:
        """Decompose every kernel on the same samples."""
        split = run.train_split
        positions = evenly_spaced(run.num_samples(split), self._config.max_samples)
        all_classes = run.classes(split)
        targets = None if all_classes is None else one_hot(all_classes[positions])
        spectra = {
            name: _Spectrum(*decompose(run.kernel(name, split, positions, split, positions), targets))
            for name in self._config.kernels or run.kernel_names
        }
        keys = summary_keys("kernel", spectra, ("split", "samples", "of"))
        summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {
            "split": split,
            "samples": len(positions),
            "of": run.num_samples(split),
        }
        summary |= {keys[name]: _summarise(spectrum) for name, spectrum in spectra.items()}
        table: list[dict[str, Scalar]] = [
            {"rank": rank + 1} | {name: float(spectrum.eigenvalues[rank]) for name, spectrum in spectra.items()}
            for rank in range(min(TABLE_ROWS, len(positions)))
        ]
        return AnalysisResult(summary, table, _draw(spectra, len(positions), run.num_samples(split)))


def _summarise(spectrum: _Spectrum) -> dict[str, Scalar]:
    values = spectrum.eigenvalues
    ridge = RELATIVE_RIDGE * float(values.mean())
    clipped = np.maximum(values, 0)
    found: dict[str, Scalar] = {
        "largest": float(values[0]),
        "smallest": float(values[-1]),
        "trace": float(values.sum()),
        "condition_number": float(values[0] / values[-1]) if values[-1] > 0 else None,
        "effective_dimension": float((clipped / (clipped + ridge)).sum()) if ridge > 0 else None,
        "not_positive": int((values <= 0).sum()),
    }
    if spectrum.energy is not None:
        for count in ENERGY_COUNTS:
            if count <= len(values):
                found[f"label_energy_top_{count}"] = float(spectrum.energy[count - 1])
    return found


def _draw(spectra: dict[str, _Spectrum], num_shown: int, num_samples: int) -> bytes:
    with_energy = any(spectrum.energy is not None for spectrum in spectra.values())
    figure = new_figure(10.0 if with_energy else 5.4, 4.2)
    axes = figure.subplots(1, 2 if with_energy else 1, squeeze=False)[0]
    for index, (name, spectrum) in enumerate(spectra.items()):
        (color, dashes), ranks = line_style(index), np.arange(1, num_shown + 1)
        positive = spectrum.eigenvalues > 0
        dropped = int((~positive).sum())
        label = name if not dropped else f"{name} ({dropped} not positive)"
        axes[0].loglog(
            ranks[positive], spectrum.eigenvalues[positive], color=color, linestyle=dashes, label=label, linewidth=1.6
        )
        if spectrum.energy is not None:
            axes[1].semilogx(ranks, spectrum.energy, color=color, linestyle=dashes, label=name, linewidth=1.6)
    axes[0].set_xlabel("rank")
    axes[0].set_ylabel("eigenvalue")
    axes[0].legend(fontsize=9)
    if with_energy:
        axes[1].set_xlabel("number of leading eigenvectors")
        axes[1].set_ylabel("share of label energy")
        axes[1].set_ylim(0, 1.02)
    for axis in axes:
        axis.grid(alpha=0.25, which="major")
    figure.suptitle(f"Spectra of the training kernels, {count_of_samples(num_shown, num_samples)}", fontsize=11)
    return png(figure)
