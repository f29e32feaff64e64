"""A picture of a kernel matrix."""

from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import HeatmapAnalysis
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, evenly_spaced
from ntkpipe.workers.analyses.plotting import new_figure, png

Array = npt.NDArray[Any]


@final
class Heatmap(AbstractAnalysis):
    """The training kernel with samples sorted by class, and mean values within and between classes."""

    def __init__(self, config: HeatmapAnalysis) -> None:
        self._config = config

    def compute(self, run: RunView) -> AnalysisResult:
        """Read at most ``max_samples`` evenly spaced samples; O(max_samples^2) memory."""
        split, name = run.train_split, self._config.kernel
        positions = evenly_spaced(run.num_samples(split), self._config.max_samples)
        all_classes = run.classes(split)
        classes = None if all_classes is None else all_classes[positions]
        if classes is not None:
            order = np.argsort(classes, kind="stable")
            positions, classes = positions[order], classes[order]
        matrix = run.kernel(name, split, positions, split, positions)
        summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {
            "kernel": name,
            "split": split,
            "samples": len(positions),
            "of": run.num_samples(split),
            "sorted_by_class": classes is not None,
        }
        if classes is not None:
            same = classes[:, None] == classes[None, :]
            np.fill_diagonal(same, False)
            other = classes[:, None] != classes[None, :]
            summary["mean_within_class"] = float(matrix[same].mean()) if same.any() else None
            summary["mean_between_classes"] = float(matrix[other].mean()) if other.any() else None
        return AnalysisResult(summary, picture=_draw(matrix, classes, name, run.num_samples(split)))


def _draw(matrix: Array, classes: Array | None, name: str, num_samples: int) -> bytes:
    figure = new_figure(7.2, 6.2)
    axis = figure.subplots()
    # The extremes of a few samples would leave the rest of the picture in one colour.
    low, high = np.quantile(matrix, [0.01, 0.99])
    image = axis.imshow(matrix, cmap="viridis", vmin=low, vmax=max(high, low + 1e-12), interpolation="nearest")
    colorbar = figure.colorbar(image, ax=axis, extend="both", shrink=0.9)
    colorbar.set_label("kernel value (1st to 99th percentile)")
    if classes is None:
        axis.set_xlabel("sample, in stored order")
    else:
        numbers, starts, counts = np.unique(classes, return_index=True, return_counts=True)
        for start in starts[1:]:
            axis.axhline(start - 0.5, color="white", linewidth=0.5)
            axis.axvline(start - 0.5, color="white", linewidth=0.5)
        middles = starts + (counts - 1) / 2
        axis.set_xticks(middles, [str(number) for number in numbers])
        axis.set_yticks(middles, [str(number) for number in numbers])
        axis.set_xlabel("class")
        axis.set_ylabel("class")
    shown = f"{len(matrix):,} samples" if len(matrix) == num_samples else f"{len(matrix):,} of {num_samples:,} samples"
    axis.set_title(f"Kernel {name}, {shown}", fontsize=11)
    return png(figure)
