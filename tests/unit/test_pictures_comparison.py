"""How alike two kernels are, against dense definitions in double precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_matrices import ArrayMatrix

from ntkpipe.configs.errors import ChunkNotReadyError
from ntkpipe.pipeline.pictures.comparison import compare
from ntkpipe.pipeline.pictures.progress import Progress


def kernel(size, seed, rank=5, offset=3.0):
    features = np.random.default_rng(seed).standard_normal((size, rank))
    return features @ features.T + offset


def by_definition(one, other):
    """Return alignment, correlation and relative difference, dense."""
    num = len(one)
    centre = np.eye(num) - 1 / num
    centred = [centre @ values @ centre for values in (one, other)]
    alignment = (centred[0] * centred[1]).sum() / np.linalg.norm(centred[0]) / np.linalg.norm(centred[1])
    return (
        alignment,
        np.corrcoef(one.ravel(), other.ravel())[0, 1],
        np.linalg.norm(one - other) / np.linalg.norm(one),
    )


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(3, 40),
    blocks=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    symmetric=st.booleans(),
    seed=st.integers(0, 9),
)
def test_comparisons_are_those_of_the_definition(size, blocks, symmetric, seed):
    one, other = kernel(size, seed), kernel(size, seed + 1) + 0.3 * kernel(size, seed)
    if not symmetric:
        one = one + np.random.default_rng(seed).standard_normal((size, size))
    matrices = ArrayMatrix(one, blocks[0], symmetric=symmetric), ArrayMatrix(other, blocks[1], symmetric=True)

    found = compare(*matrices, Progress())

    expected = by_definition(one, other)
    assert (found.alignment, found.correlation, found.relative_difference) == pytest.approx(expected, abs=1e-9)
    assert (found.num_compared, found.num_samples) == (size, size)


def test_alignment_does_not_see_scale_or_what_depends_on_one_sample():
    one = kernel(20, 0)
    shift = np.random.default_rng(1).standard_normal(20)

    found = compare(ArrayMatrix(one, 7, symmetric=True), ArrayMatrix(5 * one + shift[:, None] + shift, 7), Progress())

    assert found.alignment == pytest.approx(1)
    assert found.correlation < 1


def test_a_constant_kernel_has_no_alignment():
    found = compare(ArrayMatrix(np.ones((9, 9)), 4, symmetric=True), ArrayMatrix(kernel(9, 0), 4), Progress())

    assert (found.alignment, found.correlation) == (None, None)
    assert compare(ArrayMatrix(np.zeros((3, 3)), 2), ArrayMatrix(np.eye(3), 2), Progress()).relative_difference is None


def test_of_many_samples_evenly_spaced_blocks_are_compared_and_that_is_told():
    one, other = kernel(100, 0), kernel(100, 1)
    matrix = ArrayMatrix(one, 10, symmetric=True)

    found = compare(matrix, ArrayMatrix(other, 10, symmetric=True), Progress(), max_samples=40)

    chosen = np.concatenate([np.arange(block * 10, block * 10 + 10) for block in (0, 3, 6, 9)])
    expected = by_definition(one[np.ix_(chosen, chosen)], other[np.ix_(chosen, chosen)])
    assert (found.alignment, found.correlation, found.relative_difference) == pytest.approx(expected, abs=1e-9)
    assert (found.num_compared, found.num_samples) == (40, 100)
    assert len(matrix.reads) == 10


def test_kernels_that_are_not_whole_are_not_compared():
    missing = ArrayMatrix(kernel(20, 0), 5, symmetric=True, missing={(2, 1)})

    with pytest.raises(ChunkNotReadyError):
        compare(ArrayMatrix(kernel(20, 1), 5, symmetric=True), missing, Progress())
