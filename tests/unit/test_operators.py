"""Operators against the dense float64 matrix they stand for."""

from collections import Counter

import pytest
import torch
from array_tiles import ArrayTiles
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator


def symmetric(size, seed=0):
    values = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values + values.T


def vectors(size, seed=1, columns=3):
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), block_rows=st.integers(1, 50), seed=st.integers(0, 2**16), data=st.data())
def test_blocked_operator_equals_the_dense_matrix_for_any_block_size(size, block_rows, seed, data):
    matrix, vectors_NT = symmetric(size, seed), vectors(size, seed + 1)
    operator = BlockedOperator(ArrayTiles(matrix.numpy(), block_rows))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    torch.testing.assert_close(operator.matmat(vectors_NT), matrix @ vectors_NT, rtol=1e-12, atol=1e-12)
    assert torch.equal(operator.rows(start, stop), matrix[start:stop])
    assert torch.equal(operator.dense(), matrix)
    assert torch.equal(operator.diagonal(), matrix.diagonal())


@pytest.mark.parametrize("block_rows", [1, 4, 5, 17, 100])
def test_a_product_reads_each_lower_tile_exactly_once(block_rows):
    tiles = ArrayTiles(symmetric(17).numpy(), block_rows)
    BlockedOperator(tiles).matmat(vectors(17))
    num_blocks = -(-17 // block_rows)
    assert tiles.reads == Counter((row, column) for row in range(num_blocks) for column in range(row + 1))


def test_blocked_products_repeat_bit_for_bit():
    operator, vectors_NT = BlockedOperator(ArrayTiles(symmetric(300).numpy(), 64)), vectors(300)
    assert torch.equal(operator.matmat(vectors_NT), operator.matmat(vectors_NT))


def test_float32_tiles_are_multiplied_in_the_precision_of_the_vectors():
    matrix = symmetric(30).float()
    for operator in (BlockedOperator(ArrayTiles(matrix.numpy(), 8)), DenseOperator(matrix)):
        assert operator.dtype == torch.float32
        product_NT = operator.matmat(vectors(30))
        assert product_NT.dtype == torch.float64
        torch.testing.assert_close(product_NT, matrix.double() @ vectors(30), rtol=1e-13, atol=1e-13)


def test_read_only_tiles_are_accepted_without_a_warning():
    matrix = symmetric(10)
    operator = BlockedOperator(ArrayTiles(matrix.numpy(), 4, writeable=False))
    assert torch.equal(operator.dense(), matrix)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_entry_of_a_tile_is_named_by_its_place_in_the_matrix(value):
    matrix = symmetric(10).numpy().copy()
    matrix[9, 2] = matrix[2, 9] = value
    operator = BlockedOperator(ArrayTiles(matrix, 4))
    with pytest.raises(NumericalError, match="row 9, column 2"):
        operator.matmat(vectors(10))
    with pytest.raises(NumericalError, match="row 9, column 2"):
        operator.rows(0, 4)


def test_an_asymmetric_diagonal_tile_is_refused_with_its_place():
    matrix = symmetric(10).numpy().copy()
    matrix[6, 5] += 1
    with pytest.raises(NumericalError, match=r"not symmetric: K\[5, 6\]"):
        BlockedOperator(ArrayTiles(matrix, 4)).matmat(vectors(10))


def test_rounding_asymmetry_is_averaged_in_every_operator():
    matrix = symmetric(10)
    noisy = matrix.clone()
    noisy[2, 1] += 1e-7
    expected = (noisy + noisy.T) / 2
    assert torch.equal(DenseOperator(noisy).dense(), expected)
    assert torch.equal(BlockedOperator(ArrayTiles(noisy.numpy(), 4)).dense(), expected)


def test_a_non_symmetric_matrix_is_refused_with_the_worst_place():
    matrix = symmetric(1500)
    matrix[1200, 7] += 1
    with pytest.raises(NumericalError, match=r"not symmetric: K\[7, 1200\]"):
        DenseOperator(matrix)


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 12),
    row=st.integers(0, 11),
    column=st.integers(0, 11),
    value=st.sampled_from(["nan", "inf", "-inf"]),
)
def test_dense_operator_names_the_first_bad_entry(size, row, column, value):
    matrix = symmetric(size)
    row, column = row % size, column % size
    matrix[row, column] = float(value)
    with pytest.raises(NumericalError, match=f"row {row}, column {column},"):
        DenseOperator(matrix)


def test_values_whose_sum_overflows_are_not_taken_for_infinite():
    huge = torch.full((4, 4), 3e38)
    assert torch.equal(DenseOperator(huge).rows(0, 4), huge)


@pytest.mark.parametrize("shape", [(3, 4), (3,), (0, 0), (2, 2, 2)])
def test_dense_operator_refuses_what_is_not_square(shape):
    with pytest.raises(ConfigError, match="square"):
        DenseOperator(torch.zeros(shape))


@pytest.mark.parametrize(("size", "dim"), [(30, 7), (7, 30), (1, 1)])
def test_feature_operator_is_the_gram_matrix_in_float64(size, dim):
    features = vectors(size, columns=dim).float()
    gram = features.double() @ features.double().T
    operator, vectors_NT = FeatureOperator(features), vectors(size)
    tolerance = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(operator.matmat(vectors_NT), gram @ vectors_NT, **tolerance)
    torch.testing.assert_close(operator.dense(), gram, **tolerance)
    torch.testing.assert_close(operator.diagonal(), gram.diagonal(), **tolerance)


def test_feature_operator_names_the_first_bad_entry_and_refuses_vectors():
    features = vectors(5, columns=4)
    features[3, 2] = float("nan")
    with pytest.raises(NumericalError, match="feature matrix is NaN or infinite at row 3, column 2"):
        FeatureOperator(features)
    with pytest.raises(ConfigError, match=r"\(N, K\)"):
        FeatureOperator(torch.zeros(5))
