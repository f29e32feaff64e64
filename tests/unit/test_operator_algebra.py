"""Composed operators against the dense float64 matrices that they stand for."""

import pytest
import torch
from array_tiles import ArrayTiles
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import laplace

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.algebra import OutputsOperator, ScaledOperator, ShiftedOperator, SubsampledOperator
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.operators.metered import MeteredOperator

SIZE = 23


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def blocked(matrix):
    return BlockedOperator(ArrayTiles(matrix.numpy(), 5))


FACTORS = random(SIZE, seed=3).abs() + 0.1
OUTPUTS = torch.tensor([[2.0, -1.0], [-1.0, 3.0]], dtype=torch.float64)
POSITIONS = torch.tensor([20, 3, 3, 7, 0, 11])
PHI = random(SIZE, 4, seed=4)


def cases():
    first, second = laplace(SIZE), laplace(SIZE, seed=9)
    return {
        "dense": (DenseOperator(first, block_rows=4), first),
        "blocked": (blocked(first), first),
        "features": (FeatureOperator(PHI), PHI @ PHI.T),
        "sum": (blocked(first) + DenseOperator(second), first + second),
        "multiple": (2.5 * blocked(first), 2.5 * first),
        "congruence": (ScaledOperator(blocked(first), FACTORS), FACTORS.unsqueeze(1) * first * FACTORS),
        "shifted": (ShiftedOperator(blocked(first), 0.7), first + 0.7 * torch.eye(SIZE, dtype=torch.float64)),
        "sub-sampled": (SubsampledOperator(blocked(first), POSITIONS), first[POSITIONS][:, POSITIONS]),
        "outputs": (OutputsOperator(blocked(first), OUTPUTS), torch.kron(first, OUTPUTS)),
        "identity between outputs": (
            OutputsOperator(blocked(first), num_outputs=3),
            torch.kron(first, torch.eye(3, dtype=torch.float64)),
        ),
        "nested": (
            3.0 * ScaledOperator(blocked(first) + FeatureOperator(PHI), FACTORS),
            3.0 * FACTORS.unsqueeze(1) * (first + PHI @ PHI.T) * FACTORS,
        ),
        "metered": (MeteredOperator(blocked(first)), first),
    }


@pytest.fixture(params=cases())
def case(request):
    return cases()[request.param]


def test_products_parts_diagonals_rows_and_entries_are_those_of_the_matrix(case):
    operator, matrix = case
    vectors = random(len(matrix), 3, seed=1)
    assert operator.size == len(matrix)
    torch.testing.assert_close(operator @ vectors, matrix @ vectors, rtol=1e-12, atol=1e-12)
    parts = [operator.partial(vectors, part) for part in range(operator.num_parts)]
    torch.testing.assert_close(sum(parts), matrix @ vectors, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(operator.diagonal(), matrix.diagonal(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(operator.rows(2, 5), matrix[2:5], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(operator.dense(), matrix, rtol=1e-12, atol=1e-14)
    rows, columns = torch.tensor([4, 0, 4]), torch.tensor([5, 1])
    torch.testing.assert_close(
        operator.entries(rows, columns), matrix[rows.unsqueeze(1), columns], rtol=1e-12, atol=1e-14
    )
    torch.testing.assert_close(operator.columns(columns), matrix[:, columns], rtol=1e-12, atol=1e-14)
    found = operator.submatrix(rows)
    assert torch.equal(found, found.T)


def test_tags_tell_the_truth(case):
    operator, matrix = case
    if operator.tags.positive_semidefinite:
        assert float(torch.linalg.eigvalsh(matrix).min()) >= -1e-10
    if operator.tags.features is not None:
        features = operator.tags.features.rows(0, operator.size).double()
        torch.testing.assert_close(features @ features.T, matrix, rtol=1e-12, atol=1e-12)


def test_products_repeat_bit_for_bit_and_add_up_in_the_order_of_their_parts(case):
    operator, matrix = case
    vectors = random(len(matrix), 3, seed=1)
    total = operator.partial(vectors, 0)
    for part in range(1, operator.num_parts):
        total = total + operator.partial(vectors, part)
    assert torch.equal(operator @ vectors, total)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 300), block_rows=st.integers(1, 40))
def test_the_parts_of_a_product_read_every_tile_once(size, block_rows):
    tiles = ArrayTiles(laplace(size).numpy(), block_rows)
    operator = BlockedOperator(tiles)
    for part in range(operator.num_parts):
        operator.partial(torch.ones(size, 1, dtype=torch.float64), part)
    num_blocks = -(-size // block_rows)
    assert set(tiles.reads.values()) == {1}
    assert len(tiles.reads) == num_blocks * (num_blocks + 1) // 2


def test_what_is_read_is_counted():
    operator = MeteredOperator(blocked(laplace(SIZE)))
    operator.matmat(random(SIZE, 2))
    assert operator.passes == pytest.approx(1.0)
    assert operator.bytes_read == pytest.approx(8 * SIZE**2 / 2)
    operator.rows(0, 5)
    operator.columns(torch.tensor([1, 2]))
    assert operator.passes == pytest.approx(1.0 + 7 / SIZE)


@pytest.mark.parametrize(
    "make",
    [
        lambda k: k + DenseOperator(torch.eye(4, dtype=torch.float64)),
        lambda k: ScaledOperator(k, torch.full((SIZE,), float("nan"))),
        lambda k: ScaledOperator(k, torch.ones(3)),
        lambda k: SubsampledOperator(k, torch.tensor([SIZE])),
        lambda k: SubsampledOperator(k, torch.tensor([0.5])),
        lambda k: OutputsOperator(k, torch.ones(2, 3)),
        lambda k: OutputsOperator(k, torch.tensor([[1.0, 2.0], [0.0, 1.0]])),
        lambda k: OutputsOperator(k),
    ],
)
def test_operands_that_do_not_fit_are_refused(make):
    with pytest.raises(ConfigError, match=r"found|cannot add"):
        make(blocked(laplace(SIZE)))
