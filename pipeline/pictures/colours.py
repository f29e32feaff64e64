"""Colours for numbers: maps whose lightness says how large a number is, also to eyes that do not tell red from green.

A map is given by a few anchors in Oklab (B. Ottosson, 2020: a perceptually uniform space of lightness L, green to red a,
blue to yellow b), between which colours are interpolated in that space. Where a colour falls outside of sRGB its channels
are clipped, which the anchors are chosen to avoid.

* ``dusk``: from near black over blue, violet and orange to pale yellow. Lightness rises evenly; hue moves from
  blue to yellow, the axis that the common colour vision deficiencies leave intact.
* ``balance``: blue below zero, near white at zero, brown above. Lightness falls evenly and equally on both sides, and blue
  against brown-orange is told apart with any common deficiency.
* ``grey``: lightness only.
"""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError

Colours = npt.NDArray[np.uint8]

NUM_COLOURS: Final = 253
"""Of a map, so that three entries of a palette of 256 are left for what is no number."""

ABSENT: Final = 253
"""Index of the ground of what is not there."""
HATCH: Final = 254
"""Index of the lines across it."""
OUTSIDE: Final = 255
"""Index of what lies beyond the matrix."""

ABSENT_RGBA: Final = (128, 128, 128, 40)
HATCH_RGBA: Final = (128, 128, 128, 150)
OUTSIDE_RGBA: Final = (0, 0, 0, 0)

Anchors = tuple[tuple[float, float, float], ...]

SEQUENTIAL: Final = "dusk"
DIVERGING: Final = "balance"

_ANCHORS: Final[dict[str, Anchors]] = {
    SEQUENTIAL: (
        (0.18, 0.005, -0.045),
        (0.35, 0.035, -0.115),
        (0.52, 0.110, -0.065),
        (0.67, 0.120, 0.050),
        (0.82, 0.040, 0.125),
        (0.965, -0.010, 0.060),
    ),
    DIVERGING: (
        (0.32, -0.005, -0.105),
        (0.53, -0.035, -0.115),
        (0.75, -0.030, -0.065),
        (0.965, 0.000, 0.002),
        (0.75, 0.045, 0.085),
        (0.53, 0.075, 0.085),
        (0.32, 0.055, 0.050),
    ),
    "grey": ((0.15, 0.0, 0.0), (0.97, 0.0, 0.0)),
}

PALETTES: Final = tuple(_ANCHORS)

_OKLAB_TO_LMS: Final = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB: Final = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colours(palette: str) -> Colours:
    """Return the (253, 3) colours of a map, sRGB, from low to high.

    Raises:
        ConfigError: There is no such map.
    """
    if palette not in _ANCHORS:
        raise ConfigError(unknown_name("palette", palette, PALETTES))
    return np.round(255 * np.clip(_srgb(_interpolated(palette)), 0, 1)).astype(np.uint8)


@cache
def hex_colours(palette: str, count: int = 33) -> tuple[str, ...]:
    """Return evenly spaced colours of a map as ``#rrggbb``, from low to high."""
    chosen = colours(palette)[np.linspace(0, NUM_COLOURS - 1, count).round().astype(int)]
    return tuple("#" + bytes(colour).hex() for colour in chosen)


def indices(values: npt.NDArray[np.floating], low: float, high: float) -> Colours:
    """Return the index of the colour of every value: ``low`` has the first, ``high`` the last, what is beyond the nearest.

    What is no finite number is :data:`ABSENT`.
    """
    finite = np.isfinite(values)
    scaled = (np.where(finite, values, low).astype(np.float64) - low) * (NUM_COLOURS / (high - low))
    found = np.clip(scaled, 0, NUM_COLOURS - 1).astype(np.uint8)
    return np.where(finite, found, np.uint8(ABSENT))


def symmetric(low: float, high: float) -> tuple[float, float]:
    """Return the range around zero that holds another one, as a diverging map needs."""
    bound = max(abs(low), abs(high))
    return -bound, bound


def _interpolated(palette: str) -> npt.NDArray[np.float64]:
    anchors = np.array(_ANCHORS[palette])
    at = np.linspace(0, len(anchors) - 1, NUM_COLOURS)
    return np.stack([np.interp(at, np.arange(len(anchors)), anchors[:, axis]) for axis in range(3)], axis=1)


def _srgb(oklab: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    linear = np.power(oklab @ _OKLAB_TO_LMS.T, 3) @ _LMS_TO_RGB.T
    curved = 1.055 * np.power(np.maximum(linear, 0), 1 / 2.4) - 0.055
    encoded: npt.NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, curved)
    return encoded
