"""Inputs of models as images."""

import io
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.generic]

MAX_SIDE: Final = 2048
"""Pixels; larger ones are not shown."""

CHANNELS: Final = (1, 3)


def as_pixels(values: Array) -> Array | None:
    """Return an input as (H, W) or (H, W, 3), None if it is no image.

    Images are (H, W), (C, H, W) or (H, W, C) with one or three channels; where both fit, channels come first.
    """
    if values.ndim == 3 and values.shape[0] in CHANNELS:
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    is_image = values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3)
    if not is_image or values.dtype.kind not in "fiub" or not 1 < max(values.shape[:2]) <= MAX_SIDE:
        return None
    return values if min(values.shape) > 0 else None


def brightness(samples_BHW: Array) -> tuple[float, float]:
    """Return the numbers that are black and white in the images of a split, from some of them.

    Bytes are what they say, numbers in [0, 1] too; other images use the range of the values that occur.
    """
    if samples_BHW.dtype.kind == "b":
        return 0.0, 1.0
    if samples_BHW.dtype == np.uint8:
        return 0.0, 255.0
    values = samples_BHW.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and 0.5 < high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)


def draw_image(pixels: Array, low: float, high: float) -> bytes:
    """Return an image as a PNG, one pixel for each of its own; ``low`` is black and ``high`` white."""
    scaled = np.clip((pixels.astype(np.float64) - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(scaled)).save(buffer, "PNG")
    return buffer.getvalue()
