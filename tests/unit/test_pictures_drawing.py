"""From numbers to the pixels of a PNG, and the colours in which they are drawn."""

import io

import numpy as np
import pytest
from PIL import Image

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.pictures.colours import (
    ABSENT,
    ABSENT_RGBA,
    HATCH,
    HATCH_RGBA,
    NUM_COLOURS,
    OUTSIDE,
    PALETTES,
    colours,
    hex_colours,
    indices,
    symmetric,
)
from ntkpipe.pipeline.pictures.drawing import draw_tile, tile_indices


def lightness(palette):
    """Return L* of CIELAB of the colours of a map, computed from its sRGB values only."""
    linear = colours(palette) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def without_red_and_green(palette):
    """Return the colours as an eye without cones for long waves sees them, in linear light (F. Vienot and others, 1999)."""
    linear = (colours(palette) / 255) ** 2.2
    return linear @ np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]).T


def decoded(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture), np.array(picture.convert("RGBA"))


@pytest.mark.parametrize("palette", ["dusk", "grey"])
def test_lightness_grows_evenly_with_the_number(palette):
    steps = np.diff(lightness(palette).reshape(11, 23).mean(axis=1))

    assert (np.diff(lightness(palette)) > -0.3).all()  # rounding to whole colours
    assert steps.min() > 0.6 * steps.mean()
    assert steps.max() < 1.5 * steps.mean()


def test_the_map_with_a_middle_is_lightest_there_and_falls_evenly_on_both_sides():
    found = lightness("balance")
    middle = NUM_COLOURS // 2

    assert found.argmax() == pytest.approx(middle, abs=1)
    assert (np.diff(found[:middle]) > -0.3).all()
    assert (np.diff(found[middle:]) < 0.3).all()
    assert abs(found[:middle] - found[:middle:-1]).max() < 12
    sides = without_red_and_green("balance")[[20, -21]]
    assert np.abs(sides[0] - sides[1]).max() > 0.2, "both sides look alike without red and green"


@pytest.mark.parametrize("palette", PALETTES)
def test_every_map_has_colours_that_are_told_to_pages(palette):
    assert colours(palette).shape == (NUM_COLOURS, 3)
    told = hex_colours(palette, 17)
    assert len(told) == 17
    assert told[0] == "#" + colours(palette)[0].tobytes().hex()
    assert told[-1] == "#" + colours(palette)[-1].tobytes().hex()


def test_an_unknown_map_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="dusk"):
        draw_tile(np.zeros((2, 2)), 0, 1, "dask")


def test_numbers_have_the_colour_of_their_place_in_the_range():
    values = np.array([[-5.0, 0.0, 0.5, 1.0, 9.0, np.nan, np.inf, -np.inf]])

    found = indices(values, 0.0, 1.0)

    np.testing.assert_array_equal(found, [[0, 0, 126, 252, 252, ABSENT, ABSENT, ABSENT]])
    assert symmetric(-1.0, 3.0) == (-3.0, 3.0)


@pytest.mark.parametrize("palette", PALETTES)
def test_a_png_has_the_colours_of_the_map_pixel_by_pixel(palette):
    means = np.random.default_rng(0).uniform(-1, 2, (200, 256))
    means[17, 40] = np.nan

    _, pixels = decoded(draw_tile(means, 0.0, 1.0, palette))

    numbers = np.isfinite(means)
    expected = colours(palette)[np.clip(np.where(numbers, means, 0) * NUM_COLOURS, 0, NUM_COLOURS - 1).astype(int)]
    np.testing.assert_array_equal(pixels[:200][numbers][:, :3], expected[numbers])
    assert (pixels[:200][numbers][:, 3] == 255).all()
    assert (pixels[200:, :, 3] == 0).all(), "beyond the matrix there is something"


def test_what_is_not_there_is_hatched_and_the_lines_go_on_in_the_next_tile():
    whole = tile_indices(np.full((256, 256), np.nan), 0, 1)
    found, pixels = decoded(draw_tile(np.full((256, 100), np.nan), 0, 1, "dusk"))

    np.testing.assert_array_equal(found[:, :100], whole[:, :100])
    assert set(np.unique(whole)) == {ABSENT, HATCH}
    assert (found[:, 100:] == OUTSIDE).all()
    np.testing.assert_array_equal(np.roll(whole, (1, -1), axis=(0, 1)), whole)
    assert set(map(tuple, pixels[:, :100].reshape(-1, 4).tolist())) == {ABSENT_RGBA, HATCH_RGBA}
