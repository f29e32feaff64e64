"""Shards cover a split once; blocks cover a matrix, or its lower triangle, once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ntkpipe.storage.grid import blocks, num_blocks, num_chunks, shards

SIZES = st.integers(1, 60)
ROWS = st.integers(1, 25)


@given(SIZES, ROWS)
def test_shards_cover_a_split_once_and_in_order(num, rows):
    found = list(shards("train", num, rows))
    assert [position for shard in found for position in range(shard.start, shard.stop)] == list(range(num))
    assert len(found) == num_chunks(num, rows)
    assert all(0 < len(shard) <= rows for shard in found)
    assert len({shard.task for shard in found}) == len(found)


@given(SIZES, ROWS)
def test_blocks_cover_the_lower_triangle_once(num, rows):
    covered = np.zeros((num, num), int)
    found = list(blocks("train", num, "train", num, rows))
    for block in found:
        covered[block.rows.start : block.rows.stop, block.columns.start : block.columns.stop] += 1
    assert (covered[np.tril_indices(num)] == 1).all()
    assert covered.max() == 1
    assert len(found) == num_blocks("train", num, "train", num, rows)
    assert len({block.task for block in found}) == len(found)


@given(SIZES, SIZES, ROWS)
def test_blocks_cover_a_rectangle_once(num_rows, num_columns, rows):
    covered = np.zeros((num_rows, num_columns), int)
    found = list(blocks("test", num_rows, "train", num_columns, rows))
    for block in found:
        covered[block.rows.start : block.rows.stop, block.columns.start : block.columns.stop] += 1
    assert (covered == 1).all()
    assert len(found) == num_blocks("test", num_rows, "train", num_columns, rows)
