"""A sheet of captioned images in one set of axes: a set of axes for each would take minutes for large sheets."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ntkpipe.workers.analyses.plotting import GREEN, RED, new_figure, png

Array = npt.NDArray[Any]

PITCH_INCHES = (1.14, 1.5)
"""From one image to the next, across and down."""

TOP_INCHES, MARGIN_INCHES, GAP_INCHES = 0.75, 0.15, 0.18


@dataclass(frozen=True, slots=True)
class Cell:
    """An image with its caption."""

    image: Array
    """(H, W) shades from 0 (white) to 1 (black), or (H, W, 3) colours in [0, 1]."""
    caption: str
    right: bool
    """Colours the border: whether the class is the right one."""


def draw_sheet(rows: list[list[Cell]], title: str) -> bytes:
    """Draw rows whose first image is the one asked about, set apart from its neighbours; PNG."""
    across, down = PITCH_INCHES
    width = max(across * max(len(row) for row in rows) + GAP_INCHES, 4.6) + 2 * MARGIN_INCHES
    height = down * len(rows) + TOP_INCHES + MARGIN_INCHES
    figure = new_figure(width, height, layout=None)
    # Coordinates in inches from the upper left corner.
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    for row_index, row in enumerate(rows):
        for column, cell in enumerate(row):
            left = MARGIN_INCHES + across * column + (GAP_INCHES if column else 0.0)
            _draw_cell(axis, cell, left, TOP_INCHES + down * row_index)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_axis_off()
    axis.text(MARGIN_INCHES, 0.26, title, fontsize=11, va="center")
    axis.text(MARGIN_INCHES, 0.52, "border:", fontsize=8.5, va="center")
    axis.text(MARGIN_INCHES + 0.52, 0.52, "right class", color=GREEN, fontsize=8.5, va="center", fontweight="bold")
    axis.text(MARGIN_INCHES + 1.35, 0.52, "other class", color=RED, fontsize=8.5, va="center", fontweight="bold")
    return png(figure)


def _draw_cell(axis: Any, cell: Cell, left: float, top: float) -> None:
    """Draw an image as large as fits into a square inch, with its border and caption."""
    rows, columns = cell.image.shape[:2]
    width, height = columns / max(rows, columns), rows / max(rows, columns)
    right, bottom = left + width, top + height
    colors = "gray_r" if cell.image.ndim == 2 else None
    axis.imshow(
        np.clip(cell.image, 0, 1), cmap=colors, vmin=0, vmax=1, extent=(left, right, bottom, top), aspect="auto"
    )
    color = GREEN if cell.right else RED
    axis.plot(
        [left, right, right, left, left],
        [top, top, bottom, bottom, top],
        color=color,
        linewidth=2.0,
        linestyle="solid" if cell.right else "dashed",
    )
    axis.text(left + width / 2, bottom + 0.06, cell.caption, fontsize=8, ha="center", va="top", linespacing=1.1)
