"""A sheet of test images with the training images most similar to them."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.analyses import NeighborsAnalysis
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.analyses.base import AbstractAnalysis, AnalysisResult, RunView, Scalar, require_classes
from ntkpipe.workers.analyses.ranking import leaders
from ntkpipe.workers.analyses.sheet import Cell, draw_sheet

Array = npt.NDArray[Any]

COLUMN_BATCH = 8192
"""Training samples whose kernel values are held at a time."""


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
    """For some test images, the training images with the largest kernel value, most similar first.

    Of equal values the first sample in stored order comes first. On the training split a sample is not its own
    neighbour.
    """

    def __init__(self, config: NeighborsAnalysis) -> None:
        self._config = config

    def compute(self, run: RunView) -> AnalysisResult:
        """Read the kernel rows of the chosen images once, ``COLUMN_BATCH`` columns at a time.

        Raises:
            ConfigError: The inputs are not images, or a split has no classes.
        """
        split, train, name = self._config.split, run.train_split, self._config.kernel
        classes, train_classes = (require_classes(run, one, self._config.name) for one in (split, train))
        found = run.network_outputs(split, self._config.member).argmax(1)
        positions = self._choose(found, classes)
        images = as_images(run.inputs(split, positions), self._config.name)
        neighbors, values = nearest(run, name, split, positions, self._config.neighbors)
        rows = [
            _Row(int(position), int(found[position]), *pair)
            for position, *pair in zip(positions, neighbors, values, strict=True)
        ]
        table = _table(rows, run.sample_ids(split), run.sample_ids(train), classes, train_classes)
        summary: dict[str, Scalar | list[Scalar] | dict[str, Scalar]] = {
            "kernel": name,
            "split": split,
            "images": len(rows),
            "misclassified_by_the_network": int((found[positions] != classes[positions]).sum()),
            "share_of_neighbors_with_the_same_class": (
                float(np.mean([entry["class"] == entry["neighbor_class"] for entry in table])) if table else None
            ),
        }
        return AnalysisResult(summary, table, self._draw(run, rows, images, classes, train_classes))

    def _choose(self, found: Array, classes: Array) -> Array:
        """Return positions of misclassified images for up to half of the sheet, then of correct ones."""
        wrong, right = np.flatnonzero(found != classes), np.flatnonzero(found == classes)
        num_wrong = min(len(wrong), max(self._config.samples // 2, self._config.samples - len(right)))
        return np.concatenate([wrong[:num_wrong], right[: self._config.samples - num_wrong]])

    def _draw(self, run: RunView, rows: list[_Row], images: Array, classes: Array, train_classes: Array) -> bytes:
        shown = np.unique(np.concatenate([row.neighbors for row in rows]))
        train_images = as_images(run.inputs(run.train_split, shown), self._config.name) if len(shown) else images[:0]
        # One grey scale for the whole sheet, so that the same input looks the same everywhere.
        low = min((float(part.min()) for part in (images, train_images) if part.size), default=0.0)
        high = max((float(part.max()) for part in (images, train_images) if part.size), default=0.0)
        scale = 1 / (high - low) if high > low else 0.0
        cells = []
        for row, image in zip(rows, images, strict=True):
            truth = classes[row.position]
            first = Cell((image - low) * scale, f"class {truth}\nnetwork: {row.found}", bool(row.found == truth))
            others = [
                Cell((train_images[at] - low) * scale, f"class {number}\n{value:#.3g}", bool(number == truth))
                for at, number, value in zip(
                    np.searchsorted(shown, row.neighbors), train_classes[row.neighbors], row.values, strict=True
                )
            ]
            cells.append([first, *others])
        return draw_sheet(cells, f"Images of {self._config.split!r} and their neighbors under {self._config.kernel}")


def nearest(run: RunView, name: str, split: str, positions: Array, num_neighbors: int) -> tuple[Array, Array]:
    """Return (M, k) positions of training samples with the largest kernel values, and those values in float64.

    k is the number asked for, or fewer where there are not so many. Memory is O(M (k + COLUMN_BATCH)).
    """
    train, num_samples = run.train_split, run.num_samples(run.train_split)
    own = split == train
    found = leaders(
        lambda rows, columns: run.kernel(name, split, rows, train, columns),
        positions,
        np.arange(num_samples),
        min(num_neighbors, num_samples - own),
        block_rows=COLUMN_BATCH,
        own=own,
    )
    return found.positions, found.values


def as_images(inputs: Array, analysis: str) -> Array:
    """Return inputs as images, (N, H, W) or (N, H, W, 3).

    Raises:
        ConfigError: The inputs are not images.
    """
    if inputs.ndim == 4 and inputs.shape[1] in (1, 3):
        return inputs[:, 0] if inputs.shape[1] == 1 else np.moveaxis(inputs, 1, -1)
    if inputs.ndim != 3:
        raise ConfigError(
            f"analysis {analysis!r} shows images of shape (N, 1, H, W), (N, 3, H, W) or (N, H, W); the inputs are "
            f"{tuple(inputs.shape)}. Ask `ntkpipe query RUN neighbors/KERNEL` for neighbors of other data."
        )
    return inputs


def _table(
    rows: list[_Row], ids: list[str], train_ids: list[str], classes: Array, train_classes: Array
) -> list[dict[str, Scalar]]:
    return [
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
