"""Numbers to small PNG pictures."""

import io
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from ntkpipe.pipeline.pictures.colours import (
    ABSENT,
    ABSENT_RGBA,
    HATCH,
    HATCH_RGBA,
    OUTSIDE,
    OUTSIDE_RGBA,
    Colours,
    colours,
    indices,
)
from ntkpipe.pipeline.pictures.pyramid import TILE_PIXELS

HATCH_STEP = 8
"""Pixels from one line of the hatching to the next; divides a tile, so that lines go on in the next one."""
HATCH_PIXELS = 2
COMPRESSION = 1
"""Of zlib: pictures of kernels are noise to it, and more effort makes them a few percent smaller."""


def draw_tile(means: npt.NDArray[np.floating], low: float, high: float, palette: str) -> bytes:
    """Return a tile as a PNG with a palette.

    Args:
        means: (R, C) at most 256 by 256; what is no number is hatched, and the rest of the tile is transparent.
        low: Has the first colour.
        high: Has the last colour; larger than ``low``.
        palette: Name of a map.
    """
    return encode(tile_indices(means, low, high), palette)


def tile_indices(means: npt.NDArray[np.floating], low: float, high: float) -> Colours:
    """Return the (256, 256) indices into the palette of a tile."""
    tile = np.full((TILE_PIXELS, TILE_PIXELS), OUTSIDE, np.uint8)
    inside = tile[: means.shape[0], : means.shape[1]]
    inside[:] = indices(means, low, high)
    absent = inside == ABSENT
    if absent.any():
        diagonals = np.add.outer(np.arange(inside.shape[0]), np.arange(inside.shape[1]))
        inside[absent & (diagonals % HATCH_STEP < HATCH_PIXELS)] = HATCH
    return tile


def encode(tile: Colours, palette: str) -> bytes:
    """Return indices as a PNG."""
    picture = Image.fromarray(tile)
    picture.putpalette(_table(palette))  # makes it a picture of indices
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=COMPRESSION, transparency=_alphas())
    return buffer.getvalue()


@cache
def _table(palette: str) -> bytes:
    special = [ABSENT_RGBA[:3], HATCH_RGBA[:3], OUTSIDE_RGBA[:3]]
    return np.concatenate([colours(palette), np.array(special, np.uint8)]).tobytes()


def _alphas() -> bytes:
    return bytes([255] * ABSENT + [ABSENT_RGBA[3], HATCH_RGBA[3], OUTSIDE_RGBA[3]])
