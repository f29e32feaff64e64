"""A picture of a kernel matrix."""

from typing import TYPE_CHECKING, Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import HeatmapAnalysis
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, evenly_spaced
from ntkpipe.workers.analyses.plotting import count_of_samples, new_figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[Any]

MOST_LABELS = 24
"""Class numbers along an axis; more would overlap."""

MOST_BOUNDARIES = 60
"""Of classes; the lines of more would hide the matrix."""


@final
class Heatmap(AbstractAnalysis):
    """The training kernel with samples sorted by class, and mean values within and between classes.

    The mean within classes leaves out the diagonal, which compares samples with themselves. Without integer classes,
    samples stay in stored order, ``sorted_by_class`` is false and there are no means.
    """

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
    image = axis.imshow(matrix, cmap="viridis", vmin=low, vmax=high)
    colorbar = figure.colorbar(image, ax=axis, extend="both", shrink=0.9)
    colorbar.set_label("kernel value (1st to 99th percentile)")
    if classes is None:
        axis.set_xlabel("sample, in stored order")
        axis.set_ylabel("sample, in stored order")
    else:
        _mark_classes(axis, classes)
    axis.set_title(f"Kernel {name}, {count_of_samples(len(matrix), num_samples)}", fontsize=11)
    return png(figure)


def _mark_classes(axis: "Axes", classes: Array) -> None:
    """Draw the boundaries of sorted classes and write their numbers, leaving out those without room."""
    numbers, starts, counts = np.unique(classes, return_index=True, return_counts=True)
    if len(numbers) <= MOST_BOUNDARIES:
        for start in starts[1:]:
            axis.axhline(start - 0.5, color="white", linewidth=0.5)
            axis.axvline(start - 0.5, color="white", linewidth=0.5)
    ticks: list[float] = []
    labels: list[str] = []
    for number, middle in zip(numbers, starts + (counts - 1) / 2, strict=True):
        if not ticks or middle - ticks[-1] >= len(classes) / MOST_LABELS:
            ticks.append(float(middle))
            labels.append(str(number))
    axis.set_xticks(ticks, labels)
    axis.set_yticks(ticks, labels)
    axis.set_xlabel("class")
    axis.set_ylabel("class")
