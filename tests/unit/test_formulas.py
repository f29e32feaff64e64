"""Formulas and random features by name, in memory."""

import pytest
import torch

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NumericalError


def samples(num=23, dim=3, dtype=torch.float64):
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_an_operator_multiplies_as_the_matrix_does():
    x, vectors = samples(), torch.randn(23, 2, dtype=torch.float64)
    matrix = ntkpipe.closed_form("laplace", x, bandwidth=2.0)
    for block_rows in (1, 5, 23, 100):
        operator = ntkpipe.closed_form_operator("laplace", x, bandwidth=2.0, block_rows=block_rows)
        torch.testing.assert_close(operator.matmat(vectors), matrix @ vectors, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operator.rows(3, 9), matrix[3:9], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(operator.diagonal(), matrix.diagonal(), rtol=1e-12, atol=1e-12)


def test_a_system_is_solved_without_its_matrix():
    x, y = samples(200), torch.randn(200, dtype=torch.float64)
    operator = ntkpipe.closed_form_operator("laplace", x, bandwidth=2.0, block_rows=64)
    solution = ntkpipe.solve(operator, y, method="eigenpro2", ridge=0.5, epochs=300, tolerance=1e-8)
    exact = torch.linalg.solve(ntkpipe.closed_form("laplace", x, bandwidth=2.0) + 0.5 * torch.eye(200).double(), y)
    assert solution.converged
    torch.testing.assert_close(solution.alpha.ravel(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_have_the_precision_of_the_samples(dtype):
    x = samples(dtype=dtype)
    matrix = ntkpipe.closed_form("gaussian", x, bandwidth=1.0)
    assert matrix.dtype == ntkpipe.random_features("fourier_features", x, dim=8).dtype == dtype
    exact = ntkpipe.closed_form("gaussian", x.double(), bandwidth=1.0)
    torch.testing.assert_close(matrix.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


def test_values_beyond_the_precision_of_the_samples_are_an_error():
    x = 1e6 * samples(dtype=torch.float32)
    with pytest.raises(NumericalError, match="not finite"):
        ntkpipe.closed_form("polynomial", x, degree=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ntkpipe.closed_form("laplase", x), "did you mean 'laplace'"),
        (lambda x: ntkpipe.closed_form("trntk", x), "no closed form"),
        (lambda x: ntkpipe.closed_form("laplace", x, bandwith=1.0), "did you mean 'bandwidth'"),
        (lambda x: ntkpipe.closed_form("laplace", x, bandwidth=-1.0), "greater than 0"),
        (lambda x: ntkpipe.closed_form("laplace", x[:0], bandwidth=1.0), "no samples"),
        (lambda x: ntkpipe.closed_form("laplace", x, x[:, :2], bandwidth=1.0), "equally long"),
        (lambda x: ntkpipe.closed_form("laplace", x.numpy(), bandwidth=1.0), "torch.Tensor"),
        (lambda x: ntkpipe.closed_form("laplace", x / 0, bandwidth=1.0), "NaN or infinite"),
        (lambda x: ntkpipe.closed_form_operator("laplace", x, bandwidth=1.0, block_rows=0), "at least 1"),
        (lambda x: ntkpipe.random_features("laplace", x), "no map of random features"),
        (lambda x: ntkpipe.kernel_matrix(torch.nn.Linear(3, 1), x.float(), kernel="laplace"), "closed_form"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call(samples())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("laplace", {"bandwidth": 3.0}),
        ("laplace", {"bandwidth": 3.0, "norm": "l1"}),
        ("gaussian", {"bandwidth": 2.0}),
        ("matern", {"nu": 1.5, "bandwidth": 2.0}),
        ("dispersal", {"bandwidth": 2.0, "exponent": 1.5}),
        ("ntk", {"depth": 2}),
    ],
)
def test_single_precision_blocks_are_as_good_as_single_precision_stores_them(name, options):
    generator = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(150, 20, generator=generator, dtype=torch.float64)
    x[40] = x[7]
    x[41] = x[7] + 1e-4
    operator = ntkpipe.closed_form_operator(name, x, block_rows=64, dtype=torch.float32, **options)
    assert operator.dtype == torch.float32
    expected = ntkpipe.closed_form(name, x, **options)
    tolerance = 2e-6 * float(expected.abs().max())
    torch.testing.assert_close(operator.dense().double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(operator.diagonal().double(), expected.diagonal(), rtol=1e-6, atol=0)
    rows, columns = torch.tensor([7, 149, 0]), torch.tensor([40, 7, 41, 149])
    found = operator.entries(rows, columns).double()
    torch.testing.assert_close(found, expected[rows.unsqueeze(1), columns], rtol=0, atol=tolerance)
    assert torch.equal(operator.rows(0, 64)[:, :64], operator.rows(0, 64)[:, :64].T)
