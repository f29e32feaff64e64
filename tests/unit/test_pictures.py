"""Overviews and tiles of matrices of any size, against the definition: the mean of the entries behind a pixel."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_matrices import ArrayMatrix, pixel_means, symmetric_values

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.pipeline.pictures.orders import Order, stored_order
from ntkpipe.pipeline.pictures.overview import Overview, PictureLimits, num_tiles
from ntkpipe.pipeline.pictures.progress import NotWantedError, Progress
from ntkpipe.pipeline.pictures.pyramid import Pyramid
from ntkpipe.pipeline.pictures.reduction import Axis, reduce_matrix

TOLERANCE = 2e-5
"""Sums of a few thousand standard normal numbers in single precision, divided by their count."""


def shuffled(size, seed=1):
    return Order(np.random.default_rng(seed).permutation(size))


def whole_level(overview, level):
    """Return all pixels of a level, put together from its tiles."""
    step = 256 * overview.pyramid.entries(level)
    rows, columns = (-(-size // step) for size in (overview.pyramid.rows, overview.pyramid.columns))
    tiles = [[overview.draw(level, row, column) for column in range(columns)] for row in range(rows)]
    return np.block([[tile.means for tile in line] for line in tiles]), all(t.exact for line in tiles for t in line)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pixels_are_the_means_of_the_entries_behind_them(data):
    rows, block_rows = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 17))
    symmetric, entries = data.draw(st.booleans()), data.draw(st.sampled_from([1, 2, 4, 16]))
    columns = rows if symmetric else data.draw(st.integers(1, 40))
    values = symmetric_values(rows) if symmetric else np.random.default_rng(0).standard_normal((rows, columns))
    blocks = [
        (row, column)
        for row in range(-(-rows // block_rows))
        for column in range(-(-columns // block_rows))
        if row >= column or not symmetric
    ]
    missing = data.draw(st.sets(st.sampled_from(blocks)))
    matrix = ArrayMatrix(values.astype(np.float32), block_rows, symmetric=symmetric, missing=missing)
    at_rows = shuffled(rows).positions
    row_axis = Axis.of(at_rows, rows, entries)
    same = symmetric and data.draw(st.booleans())
    at_columns = at_rows if same else shuffled(columns, seed=2).positions
    column_axis = row_axis if same else Axis.of(at_columns, columns, entries)

    sums = reduce_matrix(matrix, row_axis, column_axis, lambda: None, threads=data.draw(st.sampled_from([1, 3])))

    expected = pixel_means(matrix.known, at_rows, at_columns, entries)
    np.testing.assert_allclose(sums.means(), expected, atol=TOLERANCE, equal_nan=True)
    assert sums.num_missing_entries == np.isnan(matrix.known).sum()
    assert set(matrix.reads) <= set(blocks)
    if same:
        assert set(matrix.reads.values()) <= {1}


def test_every_tile_of_the_triangle_is_read_once_for_an_overview():
    matrix = ArrayMatrix(symmetric_values(50), 8, symmetric=True)
    order = shuffled(50)

    Overview(matrix, order, order, PictureLimits(), Progress())

    assert matrix.reads == {(row, column): 1 for row in range(7) for column in range(row + 1)}
    assert sum(matrix.reads.values()) == num_tiles(matrix, same=True) == 28


def test_sums_do_not_depend_on_the_number_of_threads():
    matrix = ArrayMatrix(symmetric_values(300), 16, symmetric=True)
    axis = Axis.of(shuffled(300).positions, 300, 4)

    alone, together = (reduce_matrix(matrix, axis, axis, lambda: None, threads=threads) for threads in (1, 5))

    assert alone.values.tobytes() == together.values.tobytes()


@pytest.mark.parametrize("max_pixels", [64, 4096])
@pytest.mark.parametrize(("rows", "columns"), [(700, 700), (130, 600), (600, 3)])
def test_every_level_shows_means_of_its_entries(rows, columns, max_pixels):
    symmetric = rows == columns
    values = symmetric_values(rows) if symmetric else np.random.default_rng(0).standard_normal((rows, columns))
    matrix = ArrayMatrix(values.astype(np.float32), 64, symmetric=symmetric, missing={(1, 0)})
    row_order = shuffled(rows)
    column_order = row_order if symmetric else shuffled(columns)

    overview = Overview(matrix, row_order, column_order, PictureLimits(max_pixels=max_pixels), Progress())

    assert overview.pyramid.num_levels == 3
    for level in range(3):
        entries = 2 ** (2 - level)
        pixels, exact = whole_level(overview, level)
        expected = pixel_means(matrix.known, row_order.positions, column_order.positions, entries)
        np.testing.assert_allclose(pixels, expected, atol=TOLERANCE, equal_nan=True)
        assert exact
        row, column = rows // 2, columns // 2
        value, height, width = overview.pixel(level, row, column)
        assert value == pytest.approx(expected[row // entries, column // entries], abs=TOLERANCE, nan_ok=True)
        first = (row // entries * entries, column // entries * entries)
        assert (height, width) == (min(entries, rows - first[0]), min(entries, columns - first[1]))
    assert overview.num_missing_entries == np.isnan(matrix.known).sum()


def test_entries_of_the_last_level_are_drawn_to_the_bit():
    matrix = ArrayMatrix(symmetric_values(600), 100, symmetric=True)
    order = shuffled(600)

    overview = Overview(matrix, order, order, PictureLimits(), Progress())

    drawn, _ = whole_level(overview, 2)
    np.testing.assert_array_equal(drawn, matrix.values[np.ix_(order.positions, order.positions)])


def test_a_tile_that_would_read_too_much_is_a_coarser_one_that_says_so():
    matrix = ArrayMatrix(symmetric_values(1000), 50, symmetric=True)
    scattered, in_order = shuffled(1000), stored_order(1000)
    limits = PictureLimits(max_pixels=256, max_tile_bytes=40 * 50 * 50 * 4, max_pixel_bytes=50 * 50 * 4)

    mixed = Overview(matrix, scattered, scattered, limits, Progress())
    plain = Overview(matrix, in_order, in_order, limits, Progress())

    coarse = pixel_means(matrix.known, scattered.positions, scattered.positions, 4)
    drawn = mixed.draw(2, 1, 0)
    assert not drawn.exact
    assert drawn.entries == 4
    np.testing.assert_allclose(drawn.means, np.kron(coarse, np.ones((4, 4)))[256:512, :256], atol=TOLERANCE)
    assert mixed.pixel(2, 300, 7) == (matrix.values[scattered.positions[300], scattered.positions[7]], 1, 1)
    assert mixed.pixel(1, 300, 7) == (pytest.approx(coarse[75, 1], abs=TOLERANCE), 4, 4)
    assert plain.draw(2, 1, 0).exact
    assert plain.describe()["exact_from"] == 2
    assert mixed.describe()["exact_from"] is None
    assert mixed.describe()["finest"] == 0
    assert [scale["entries"] for scale in mixed.describe()["scales"]] == [4, 2, 1]


def test_nothing_committed_is_a_picture_without_numbers():
    matrix = ArrayMatrix(symmetric_values(20), 10, symmetric=True, missing={(0, 0), (1, 0), (1, 1)})
    order = stored_order(20)

    overview = Overview(matrix, order, order, PictureLimits(), Progress())

    assert overview.num_missing_entries == 400
    assert overview.describe()["quantiles"] == {}
    low, high = overview.range
    assert low < high
    assert np.isnan(overview.draw(0, 0, 0).means).all()


def test_the_range_leaves_out_a_few_extreme_entries_and_is_never_empty():
    values = np.linspace(0, 1, 100 * 100).reshape(100, 100).astype(np.float32)
    values[3, 4] = 1e9
    order = stored_order(100)

    spread = Overview(ArrayMatrix(values, 32), order, order, PictureLimits(), Progress())
    flat = Overview(ArrayMatrix(np.full((9, 9), 7.0), 4), stored_order(9), stored_order(9), PictureLimits(), Progress())

    assert spread.range == pytest.approx((0.01, 0.99), abs=1e-3)
    assert spread.palette == "dusk"
    assert flat.range == (6.5, 7.5)
    mixed = Overview(ArrayMatrix(values - 0.5, 32), order, order, PictureLimits(), Progress())
    assert mixed.palette == "balance"


def test_pictures_tell_a_version_that_follows_what_is_drawn():
    values = symmetric_values(40)
    order = stored_order(40)

    def version(matrix, order=order):
        return Overview(matrix, order, order, PictureLimits(), Progress()).version

    same = [version(ArrayMatrix(values, block, symmetric=True)) for block in (7, 16)]
    changed = values.copy()
    changed[3, 3] += 1
    assert len(set(same)) == 1
    assert version(ArrayMatrix(changed, 7, symmetric=True)) not in same
    assert version(ArrayMatrix(values, 7, symmetric=True), shuffled(40)) not in same


def test_a_pass_that_nobody_wants_ends_early():
    wanted = threading.Event()
    wanted.set()
    matrix = ArrayMatrix(symmetric_values(100), 10, symmetric=True)
    progress = Progress(wanted.is_set)
    progress.expect(55)
    axis = Axis.of(np.arange(100), 100, 1)

    def advance():
        if progress.done_fraction > 0.2:
            wanted.clear()
        progress.advance()

    with pytest.raises(NotWantedError):
        reduce_matrix(matrix, axis, axis, advance, threads=2)

    assert sum(matrix.reads.values()) < 20


@given(rows=st.integers(1, 100_000), columns=st.integers(1, 100_000))
def test_level_zero_is_one_tile_and_each_level_doubles(rows, columns):
    pyramid = Pyramid(rows, columns)

    assert 256 * pyramid.entries(0) >= max(rows, columns)
    assert pyramid.num_levels == 1 or 256 * pyramid.entries(1) < max(rows, columns)
    assert pyramid.entries(pyramid.num_levels - 1) == 1
    assert pyramid.places(0, 0, 0) == (slice(0, rows), slice(0, columns))
    for level in range(pyramid.num_levels):
        assert pyramid.level_of(pyramid.entries(level)) == level


@pytest.mark.parametrize("place", [(-1, 0, 0), (3, 0, 0), (2, 4, 0), (2, 0, 4), (2, -1, 0)])
def test_a_tile_that_does_not_exist_is_not_found(place):
    with pytest.raises(NotFoundError, match="there is no"):
        Pyramid(1000, 1000).places(*place)
