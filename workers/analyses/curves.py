"""How a job scales with the number of nodes, as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ntkpipe.workers.analyses.plotting import BLUE, GREEN, GREY, ORANGE, new_figure, png

SHADES: Final = ("#0072B2", "#56B4E9", "#E69F00", "#F0E442", "#D55E00", "#999999", "#CC79A7", "#000000")
"""Of the parts of the workers' time, in their order; those after Okabe and Ito."""

TIMES: Final = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"), (31557600.0, "years"))


@dataclass(frozen=True, slots=True)
class Point:
    """A run on some nodes."""

    nodes: int
    seconds: float
    efficiency: float
    """Beside the first point: 1 if twice the nodes take half of the time."""
    price: float
    node_seconds: float
    shares: Mapping[str, float]
    """Of the workers' time, by what they spent it on; the same names in the same order for every point."""


def draw_curves(points: Sequence[Point], title: str) -> bytes:
    """Draw time, efficiency, cost, and where the time of workers went, against the number of nodes; PNG."""
    figure = new_figure(9.6, 7.8)
    (upper_left, upper_right), (lower_left, lower_right) = figure.subplots(2, 2)
    nodes = [point.nodes for point in points]
    _draw_times(upper_left, points)
    upper_right.plot(nodes, [100 * point.efficiency for point in points], color=GREEN, marker="o", linewidth=1.6)
    upper_right.axhline(100, color=GREY, linewidth=0.8, linestyle="dashed")
    upper_right.set_ylim(0, max(105.0, *(105 * point.efficiency for point in points)))
    upper_right.set_ylabel("efficiency in %")
    _draw_cost(lower_left, points)
    _draw_shares(lower_right, points)
    for axis in (upper_left, upper_right, lower_left):
        axis.set_xscale("log")
        axis.set_xticks(nodes, [f"{num:,}" for num in nodes])
        axis.minorticks_off()
        axis.set_xlabel("nodes")
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    return png(figure)


def _draw_times(axis: Any, points: Sequence[Point]) -> None:
    scale, unit = max((pair for pair in TIMES if pair[0] <= min(point.seconds for point in points)), default=TIMES[0])
    nodes, times = [point.nodes for point in points], [point.seconds / scale for point in points]
    ideal = [times[0] * nodes[0] / num for num in nodes]
    axis.plot(nodes, times, color=BLUE, marker="o", linewidth=1.6, label="simulated")
    axis.plot(nodes, ideal, color=GREY, linestyle="dashed", linewidth=1.0, label="ideal")
    axis.set_yscale("log")
    axis.set_ylabel(f"time in {unit}")
    axis.legend(fontsize=9)


def _draw_cost(axis: Any, points: Sequence[Point]) -> None:
    has_price = any(point.price for point in points)
    values = [point.price if has_price else point.node_seconds / 3600 for point in points]
    axis.plot([point.nodes for point in points], values, color=ORANGE, marker="o", linewidth=1.6)
    axis.set_ylim(0, 1.1 * max(*values, 1e-9))
    axis.set_ylabel("price" if has_price else "node hours")


def _draw_shares(axis: Any, points: Sequence[Point]) -> None:
    """Draw a bar of 100 % for each number of nodes."""
    places, bottoms = range(len(points)), [0.0] * len(points)
    for name, color in zip(points[0].shares, SHADES, strict=False):
        values = [100 * point.shares[name] for point in points]
        if max(values) >= 0.05:
            axis.bar(places, values, bottom=bottoms, color=color, label=name, width=0.72)
            bottoms = [low + high for low, high in zip(bottoms, values, strict=True)]
    axis.set_xticks(places, [f"{point.nodes:,}" for point in points])
    axis.set_xlabel("nodes")
    axis.set_ylabel("worker time in %")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
