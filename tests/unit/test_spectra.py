"""Eigenpairs, traces and log-determinants against dense float64 decompositions."""

import math

import pytest
import torch
from array_tiles import ArrayTiles
from golden import TRNTK0
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import laplace, rbf, targets

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.spectra.eigenpairs import eigenpairs
from ntkpipe.workers.spectra.traces import log_determinant, trace_of

METHODS = ["full", "lanczos", "lobpcg", "randomised", "nystrom"]


def eigenvalues(matrix):
    return torch.linalg.eigvalsh(matrix.double()).flip(0)


def assert_truthful(pairs, matrix):
    """Residuals are those of the matrix, and every value has an eigenvalue within its residual."""
    residuals = (matrix @ pairs.vectors_NQ - pairs.vectors_NQ * pairs.values_Q).norm(dim=0)
    torch.testing.assert_close(pairs.residuals_Q, residuals, rtol=1e-3, atol=1e-12)
    distances = (pairs.values_Q.unsqueeze(1) - eigenvalues(matrix)).abs().amin(dim=1)
    assert bool((distances <= residuals + 1e-12).all())
    gram = pairs.vectors_NQ.T @ pairs.vectors_NQ
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-10)
    assert bool((pairs.values_Q.diff() <= 0).all())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kernel", [rbf, laplace])
def test_every_method_tells_the_truth_about_its_pairs(method, kernel):
    matrix = kernel(200)
    pairs = eigenpairs(matrix, 8, method=method)
    assert_truthful(pairs, matrix)
    assert pairs.method == method
    tolerance = {"randomised": 1e-2, "nystrom": 2e-2}.get(method, 1e-12)
    expected = eigenvalues(matrix)[:8]
    assert float((pairs.values_Q - expected).abs().max()) <= tolerance * float(expected[0])


@pytest.mark.parametrize("method", ["lanczos", "lobpcg"])
def test_iterations_end_at_their_tolerance_and_count_their_passes(method):
    operator = BlockedOperator(ArrayTiles(laplace(150).numpy(), 40))
    rough, fine = (eigenpairs(operator, 5, method=method, tolerance=t) for t in (1e-2, 1e-9))
    for pairs in (rough, fine):
        assert bool(pairs.converged_Q.all())
    assert 2 <= rough.passes < fine.passes
    stopped = eigenpairs(operator, 5, method=method, tolerance=1e-9, max_passes=2)
    assert not stopped.converged_Q.all()
    assert stopped.passes == pytest.approx(3)
    assert_truthful(stopped, laplace(150))


def test_a_restarted_basis_finds_what_a_full_one_finds():
    matrix = laplace(600)
    pairs = eigenpairs(matrix, 4, method="lanczos", tolerance=1e-10)
    assert bool(pairs.converged_Q.all())
    assert pairs.passes * 16 > 2 * 4 + 4 * 16
    torch.testing.assert_close(pairs.values_Q, eigenvalues(matrix)[:4], rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    size=st.integers(1, 25),
    rank=st.integers(0, 25),
    num=st.integers(1, 25),
    seed=st.integers(0, 1000),
)
def test_any_matrix_of_any_rank_has_truthful_pairs(method, size, rank, num, seed):
    factor = targets(size, columns=max(rank, 1), seed=seed) * (rank > 0)
    matrix = factor @ factor.T
    pairs = eigenpairs(FeatureOperator(factor), min(num, size), method=method, seed=seed)
    assert_truthful(pairs, matrix)
    if method in ("full", "lanczos"):
        expected = eigenvalues(matrix)[: len(pairs.values_Q)]
        torch.testing.assert_close(pairs.values_Q, expected, rtol=0, atol=1e-7 * max(1.0, float(expected[0])))


def test_indefinite_matrices_give_their_largest_eigenvalues():
    matrix = laplace(60) - 2 * torch.eye(60, dtype=torch.float64)
    for method in ("full", "lanczos", "lobpcg"):
        pairs = eigenpairs(matrix, 3, method=method, max_passes=300)
        torch.testing.assert_close(pairs.values_Q, eigenvalues(matrix)[:3], rtol=0, atol=1e-7)


def test_the_same_seed_gives_the_same_bits_and_auto_chooses_by_size():
    matrix = laplace(100)
    first, second = (eigenpairs(matrix, 5, method="lanczos", seed=4) for _ in range(2))
    assert torch.equal(first.vectors_NQ, second.vectors_NQ)
    assert eigenpairs(matrix).method == "full"
    assert len(eigenpairs(matrix).values_Q) == 100
    assert eigenpairs(rbf(2001), 3, tolerance=1e-3).method == "lanczos"


@pytest.mark.parametrize(
    ("num", "options", "message"),
    [
        (0, {}, "1 to 20 eigenpairs"),
        (21, {}, "1 to 20 eigenpairs"),
        (3, {"method": "power"}, "lobpcg"),
        (3, {"num_columns": 2, "method": "nystrom"}, "num_columns"),
        (3, {"tolerance": 0.0}, "tolerance"),
        (3, {"max_passes": 0}, "max_passes"),
    ],
)
def test_arguments_out_of_range_are_refused(num, options, message):
    with pytest.raises(ConfigError, match=message):
        eigenpairs(rbf(20), num, **options)


def test_the_golden_log_determinant():
    estimate = log_determinant(torch.tensor(TRNTK0).double(), 1.0)
    assert estimate.value == pytest.approx(10.80271351, abs=1e-6)
    assert (estimate.standard_error, estimate.truncation) == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(70, 6), (6, 70), (30, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_have_the_log_determinant_of_their_gram_matrix(shape, dtype):
    features = targets(shape[0], columns=shape[1], seed=2).to(dtype)
    kernel = features.double() @ features.double().T + 0.01 * torch.eye(shape[0], dtype=torch.float64)
    found = log_determinant(FeatureOperator(features), 0.01).value
    assert found == pytest.approx(float(torch.logdet(kernel)), rel=1e-9)


def test_a_matrix_that_is_not_positive_definite_has_no_log_determinant():
    matrix = rbf(30) - 0.5 * torch.eye(30, dtype=torch.float64)
    for method in ("exact", "lanczos"):
        with pytest.raises(NumericalError, match="ridge"):
            log_determinant(matrix, 0.0, method=method)
    with pytest.raises(ConfigError, match="ridge"):
        log_determinant(matrix, -1.0)
    with pytest.raises(ConfigError, match="exact"):
        log_determinant(matrix, 1.0, method="qr")
    with pytest.raises(ConfigError, match="num_probes"):
        trace_of(matrix, torch.exp, num_probes=0)


def test_error_bars_of_log_determinants_are_honest():
    matrix = laplace(100)
    truth = log_determinant(matrix, 0.1).value
    estimates = [
        log_determinant(matrix, 0.1, method="lanczos", num_probes=10, num_steps=30, seed=seed) for seed in range(60)
    ]
    scores = torch.tensor([(e.value - truth) / e.standard_error for e in estimates])
    # Student's t with 9 degrees of freedom: 95 % within 2.26, standard deviation 1.13.
    assert 0.85 <= float((scores.abs() <= 2.26).double().mean()) <= 1.0
    assert 0.8 <= float(scores.std()) <= 1.5
    assert abs(float(scores.mean())) <= 0.4


def test_more_probes_have_smaller_error_bars_and_more_steps_less_truncation():
    matrix = rbf(150)
    few, many = (log_determinant(matrix, 0.01, method="lanczos", num_probes=p) for p in (10, 160))
    assert many.standard_error == pytest.approx(few.standard_error / 4, rel=0.6)
    short, long = (log_determinant(matrix, 0.01, method="lanczos", num_steps=s) for s in (6, 40))
    exhaustive = log_determinant(matrix, 0.01, method="lanczos", num_steps=150)
    assert short.truncation > 10 * long.truncation
    # The same probes: what is left of the difference is truncation.
    assert abs(short.value - exhaustive.value) <= 3 * short.truncation
    assert abs(long.value - exhaustive.value) <= 3 * long.truncation + 1e-6
    assert math.isnan(log_determinant(matrix, 0.01, method="lanczos", num_probes=1).standard_error)


@pytest.mark.parametrize("function", [torch.ones_like, lambda v: v, torch.square, torch.exp])
def test_functions_with_few_moments_are_integrated_exactly_per_probe(function):
    matrix = torch.diag(torch.linspace(0, 2, 30, dtype=torch.float64))
    # Independent signs see the diagonal of a diagonal matrix without error.
    estimate = trace_of(matrix, function, num_probes=3, num_steps=20)
    assert estimate.value == pytest.approx(float(function(matrix.diagonal()).sum()), rel=1e-9)
    assert estimate.standard_error <= 1e-9 * abs(estimate.value)


def test_a_matrix_of_low_rank_ends_the_iteration_early_without_harm():
    features = targets(50, columns=2, seed=1)
    matrix = features @ features.T
    estimate = trace_of(matrix, lambda values: (values + 1).log(), num_probes=200, num_steps=30)
    truth = log_determinant(matrix, 1.0).value
    assert abs(estimate.value - truth) <= 4 * estimate.standard_error
    zero = trace_of(torch.zeros(5, 5), lambda values: values + 3, num_probes=2, num_steps=5)
    assert zero.value == pytest.approx(15)
