"""A sheet of test images with the training images most similar to them."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import NeighborsAnalysis
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, require_classes
from ntkpipe.workers.analyses.plotting import GREEN, GREY, RED, new_figure, png

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Row:
    """A test image and its neighbours."""

    position: int
    found: int
    """What the network says."""
    neighbors: Array
    """Positions of training images, most similar first."""
    values: Array


@final
class Neighbors(AbstractAnalysis):
    """For some test images, the training images with the largest kernel value, most similar first."""

    def __init__(self, config: NeighborsAnalysis) -> None:
        self._config = config

    def compute(self, run: RunView) -> AnalysisResult:
        """Read one kernel row per image; O(N) memory."""
        split, train, name = self._config.split, run.train_split, self._config.kernel
        classes, train_classes = (require_classes(run, one, self._config.name) for one in (split, train))
        found = run.network_outputs(split).argmax(1)
        rows = []
        for position in self._choose(found, classes):
            values = run.kernel(name, split, np.array([position]), train, np.arange(run.num_samples(train)))[0]
            order = np.argsort(-values, kind="stable")[: self._config.neighbors]
            rows.append(_Row(int(position), int(found[position]), order, values[order]))
        ids, train_ids = run.sample_ids(split), run.sample_ids(train)
        table: list[dict[str, Scalar]] = [
            {
                "sample": ids[row.position],
                "class": int(classes[row.position]),
                "network": row.found,
                "rank": rank + 1,
                "neighbor": train_ids[neighbor],
                "neighbor_class": int(train_classes[neighbor]),
                "kernel": float(value),
            }
            for row in rows
            for rank, (neighbor, value) in enumerate(zip(row.neighbors, row.values, strict=True))
        ]
        share = float(np.mean([entry["class"] == entry["neighbor_class"] for entry in table]))
        summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {
            "kernel": name,
            "split": split,
            "images": len(rows),
            "share_of_neighbors_with_the_same_class": share,
        }
        return AnalysisResult(summary, table, _draw(run, name, split, rows, classes, train_classes))

    def _choose(self, found: Array, classes: Array) -> Array:
        """Return positions of misclassified images for up to half of the sheet, then of correct ones."""
        wrong, right = np.flatnonzero(found != classes), np.flatnonzero(found == classes)
        num_wrong = min(len(wrong), max(self._config.samples // 2, self._config.samples - len(right)))
        return np.concatenate([wrong[:num_wrong], right[: self._config.samples - num_wrong]])


def _draw(run: RunView, name: str, split: str, rows: list[_Row], classes: Array, train_classes: Array) -> bytes:
    num_columns = 1 + max(len(row.neighbors) for row in rows)
    figure = new_figure(1.25 * num_columns + 0.4, 1.55 * len(rows) + 0.6)
    grid = figure.subplots(len(rows), num_columns, squeeze=False)
    images = pictures(run.inputs(split, np.array([row.position for row in rows])))
    for axes, row, image in zip(grid, rows, images, strict=True):
        right = row.found == classes[row.position]
        title = f"is {classes[row.position]}, network: {row.found}"
        _show(axes[0], image, title, GREY if right else RED, bold=True)
        for axis, neighbor, value, picture in zip(
            axes[1:], row.neighbors, row.values, pictures(run.inputs(run.train_split, row.neighbors)), strict=True
        ):
            same = train_classes[neighbor] == classes[row.position]
            _show(axis, picture, f"{train_classes[neighbor]}  ({value:.3g})", GREEN if same else RED, bold=False)
    figure.suptitle(f"Test images (left) and their nearest training images under {name}", fontsize=11)
    return png(figure)


def _show(axis: Any, image: Array, title: str, color: str, *, bold: bool) -> None:
    axis.imshow(image, cmap="gray_r" if image.ndim == 2 else None, interpolation="nearest")
    axis.set_title(
        title, fontsize=8, color="black" if color == GREY else color, fontweight="bold" if bold else "normal"
    )
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_edgecolor(color)
        spine.set_linewidth(2.0)


def pictures(inputs: Array) -> Array:
    """Return inputs as images, (N, H, W) or (N, H, W, 3), scaled to [0, 1] over all of them.

    Raises:
        ConfigError: The inputs are not images.
    """
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3):
        inputs = inputs[:, 0] if inputs.shape[1] == 1 else np.moveaxis(inputs, 1, -1)
    elif inputs.ndim != 3:
        raise ConfigError(
            f"analysis 'neighbors' shows images of shape (N, 1, H, W), (N, 3, H, W) or (N, H, W); the inputs are "
            f"{tuple(inputs.shape)}. Use `ntkpipe query RUN neighbors/KERNEL` for other data."
        )
    low, high = float(inputs.min()), float(inputs.max())
    return (inputs - low) / (high - low) if high > low else np.zeros_like(inputs)
