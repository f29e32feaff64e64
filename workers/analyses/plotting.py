"""The only home of matplotlib: figures without global state, as PNG bytes that depend on the data alone."""

import io
from typing import TYPE_CHECKING, Literal

from ntkpipe.configs.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120

# Okabe and Ito: told apart by people with any kind of colour vision.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
COLORS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9")
DASHES = ("solid", "dashed", "dotted", "dashdot")


def new_figure(
    width_inches: float, height_inches: float, layout: Literal["constrained"] | None = "constrained"
) -> "Figure":
    """Return an empty figure; without a layout, everything stays where it is put.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures need matplotlib: pip install 'ntkpipe[plot]'") from None
    return Figure(figsize=(width_inches, height_inches), layout=layout)


def png(figure: "Figure") -> bytes:
    """Render a figure; without the writer's version among the metadata, so that equal data give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def line_style(index: int) -> tuple[str, str]:
    """Return the colour and the dashes of a curve; the first 24 curves of a picture differ."""
    return COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]


def count_of_samples(num_shown: int, num_samples: int) -> str:
    """Say how many samples a picture shows, and of how many."""
    if num_shown == num_samples:
        return f"{num_shown:,} samples"
    return f"{num_shown:,} of {num_samples:,} samples"
