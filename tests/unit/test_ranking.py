"""The largest entries of rows, against sorting whole rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.workers.analyses import ranking
from ntkpipe.workers.analyses.ranking import Leaders, leaders, rectangles


def sorted_rows(matrix, rows, columns, k, *, opposed, own):
    """Return what a full stable sort of every row finds."""
    found = []
    for row in rows:
        keys = -matrix[row] if not opposed else matrix[row]
        allowed = [c for c in columns if not np.isnan(keys[c]) and not (own and c == row)]
        found.append(sorted(allowed, key=lambda c: (keys[c], c))[:k])
    return found


@settings(deadline=None)
@given(st.data())
def test_the_leaders_are_those_of_a_stable_sort_whatever_the_tiles_ties_and_gaps(data):
    num = data.draw(st.integers(1, 12))
    seed, own, opposed = data.draw(st.integers(0, 999)), data.draw(st.booleans()), data.draw(st.booleans())
    generator = np.random.default_rng(seed)
    # Few different values, so that there are ties; zeros of both signs are equal.
    matrix = generator.choice(np.array([-1.5, -0.0, 0.0, 2.0, np.nan], np.float32), (num, num))
    rows = np.array(data.draw(st.lists(st.integers(0, num - 1), min_size=1, max_size=8)))
    columns = np.flatnonzero(generator.random(num) < data.draw(st.sampled_from([0.3, 1.0])))
    k, block_rows = data.draw(st.integers(1, 14)), data.draw(st.integers(1, 13))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "HELD_VALUES", data.draw(st.integers(1, 200)))
        found = leaders(
            lambda at, part: matrix[np.ix_(at, part)], rows, columns, k, block_rows=block_rows, opposed=opposed, own=own
        )
    expected = sorted_rows(matrix, rows, columns, k, opposed=opposed, own=own)
    for positions, values, row, wanted in zip(found.positions, found.values, rows, expected, strict=True):
        assert positions[positions >= 0].tolist() == wanted
        assert (positions[len(wanted) :] == -1).all()
        assert np.isnan(values[len(wanted) :]).all()
        assert values[: len(wanted)].tolist() == matrix[row, wanted].astype(float).tolist()


@settings(deadline=None)
@given(st.integers(0, 999), st.integers(1, 6))
def test_the_order_in_which_columns_are_added_does_not_matter(seed, k):
    generator = np.random.default_rng(seed)
    matrix, parts = generator.integers(0, 3, (4, 9)).astype(float), np.array_split(np.arange(9), 4)
    answers = []
    for order in (range(4), generator.permutation(4)):
        found = Leaders(4, k)
        for part in order:
            found.add(np.arange(4), parts[part], matrix[:, parts[part]])
        answers.append(found)
    assert np.array_equal(answers[0].positions, answers[1].positions)
    assert np.array_equal(answers[0].values, answers[1].values, equal_nan=True)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(0, 40), st.integers(1, 11), st.integers(1, 300)
)
def test_rectangles_cover_every_pair_once_read_no_tile_twice_and_stay_small(rows, num_columns, block_rows, held):
    rows, columns = np.array(rows), np.arange(num_columns)
    seen, tiles = np.zeros((len(rows), num_columns), int), []
    for at, part in rectangles(rows, columns, block_rows, held):
        seen[np.ix_(at, part)] += 1
        covered = {(int(r), int(c)) for r in np.unique(rows[at] // block_rows) for c in np.unique(part // block_rows)}
        tiles += covered
        in_largest_tile = max((rows[at] // block_rows == r).sum() * (part // block_rows == c).sum() for r, c in covered)
        assert len(at) * len(part) <= max(held, in_largest_tile)
    assert (seen == 1).all()
    assert len(tiles) == len(set(tiles))


def test_no_neighbours_are_found_where_there_are_none():
    read = np.zeros((3, 1)).__getitem__
    for rows, columns, k in (([0], [], 3), ([], [0], 3)):
        found = leaders(
            lambda at, part: read(np.ix_(at, part)), np.array(rows, int), np.array(columns, int), k, block_rows=2
        )
        assert found.positions.size == 0
    alone = leaders(lambda at, part: read(np.ix_(at, part)), np.array([0]), np.array([0]), 3, block_rows=2, own=True)
    assert alone.positions.tolist() == [[-1]]
