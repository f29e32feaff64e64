"""Gaussian process posteriors against their formulas, and bounds in subspaces."""

import pytest
import torch
from golden import TRNTK0
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import laplace, rbf, targets

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.solve import solve
from ntkpipe.workers.spectra.posterior import posterior


def split(kernel, size, new):
    """Return the kernel of some samples, that of new ones with them, and that of the new ones."""
    matrix = kernel(size + new)
    return matrix[:size, :size], matrix[size:, :size], matrix[size:, size:]


@pytest.mark.parametrize("kernel", [rbf, laplace])
def test_the_exact_posterior_is_the_conditional_distribution(kernel):
    samples, between, new = split(kernel, 60, 9)
    y = targets(60, columns=2)
    found = posterior(samples, y, 0.2)
    inverse = torch.linalg.inv(samples + 0.2 * torch.eye(60, dtype=torch.float64))
    covariance = new - between @ inverse @ between.T
    torch.testing.assert_close(found.mean(between), between @ inverse @ y, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.covariance(between, new), covariance, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.variance(between, new.diagonal()), covariance.diagonal(), rtol=0, atol=1e-11)
    noisy = found.variance(between.numpy(), new.diagonal().numpy(), noisy=True)
    torch.testing.assert_close(noisy, covariance.diagonal() + 0.2, rtol=0, atol=1e-11)
    assert float(found.residuals_T.max()) <= 1e-12


def test_the_golden_variances():
    matrix = torch.tensor(TRNTK0).double()
    found = posterior(matrix[:1, :1], torch.ones(1), 1.0)
    variances = found.variance(matrix[:, :1], matrix.diagonal())
    expected = torch.tensor([0.94736842, 24.63157895, 53.63157895, 1.78947368], dtype=torch.float64)
    torch.testing.assert_close(variances, expected, rtol=0, atol=1e-6)


def test_the_evidence_is_the_density_of_the_targets():
    samples, y = laplace(40), targets(40, columns=2)
    found = posterior(samples, y, 0.3)
    covariance = samples + 0.3 * torch.eye(40, dtype=torch.float64)
    density = torch.distributions.MultivariateNormal(torch.zeros(40, dtype=torch.float64), covariance)
    assert found.log_evidence_T is not None
    torch.testing.assert_close(found.log_evidence_T, density.log_prob(y.T))


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(["lanczos", "nystrom"]),
    kernel=st.sampled_from([rbf, laplace]),
    rank=st.integers(1, 40),
    exponent=st.integers(-4, 1),
    seed=st.integers(0, 1000),
)
def test_variances_in_a_subspace_are_upper_bounds_and_never_above_the_prior(method, kernel, rank, exponent, seed):
    samples, between, new = split(kernel, 40, 15)
    y, noise = targets(40), 10.0**exponent
    exact = posterior(samples, y, noise).variance(between, new.diagonal())
    found = posterior(samples, y, noise, method=method, rank=rank, seed=seed).variance(between, new.diagonal())
    assert bool((exact >= 0).all())
    assert bool((found >= exact - 1e-9).all())
    assert bool((found <= new.diagonal() + 1e-12).all())


@pytest.mark.parametrize("method", ["lanczos", "nystrom"])
def test_larger_subspaces_come_closer_and_the_whole_space_is_exact(method):
    samples, between, new = split(rbf, 80, 20)
    y = targets(80)
    exact = posterior(samples, y, 0.1)
    gaps = []
    for rank in (5, 20, 80):
        found = posterior(samples, y, 0.1, method=method, rank=rank)
        gaps.append(float((found.variance(between, new.diagonal()) - exact.variance(between, new.diagonal())).mean()))
    assert gaps[0] > gaps[1] > gaps[2] - 1e-12
    assert gaps[1] < 0.3 * float(new.diagonal().mean())
    if method == "lanczos":
        assert abs(gaps[2]) <= 1e-8
        torch.testing.assert_close(found.mean(between), exact.mean(between), rtol=0, atol=1e-6)


def test_what_a_subspace_leaves_of_the_targets_is_told_and_a_solver_can_do_better():
    samples, y = laplace(80), targets(80)
    rough = posterior(samples, y, 0.1, method="nystrom", rank=10)
    covariance = samples + 0.1 * torch.eye(80, dtype=torch.float64)
    expected = (y - covariance @ rough.alpha_NT).norm(dim=0) / y.norm(dim=0)
    torch.testing.assert_close(rough.residuals_T, expected)
    assert float(rough.residuals_T.max()) > 0.1
    assert rough.log_evidence_T is None
    solution = solve(samples, y, ridge=0.1, method="cholesky")
    better = posterior(samples, y, 0.1, method="nystrom", rank=10, alpha=solution.alpha)
    assert float(better.residuals_T.max()) <= 1e-10
    torch.testing.assert_close(better.mean(samples), samples @ solution.alpha)


def test_variances_that_rounding_makes_negative_are_zero():
    samples = rbf(50)
    found = posterior(samples, targets(50), 1e-12)
    variances = found.variance(samples, samples.diagonal())
    assert bool((variances >= 0).all())
    assert float(variances.max()) <= 1e-9


@pytest.mark.parametrize("method", ["exact", "lanczos", "nystrom"])
def test_features_have_the_posterior_of_their_gram_matrix(method):
    features, y = targets(40, columns=5, seed=2).float(), targets(40)
    kernel = features.double() @ features.double().T
    found = posterior(FeatureOperator(features), y, 0.5, method=method, rank=30)
    expected = posterior(kernel, y, 0.5)
    torch.testing.assert_close(
        found.variance(kernel, kernel.diagonal()), expected.variance(kernel, kernel.diagonal()), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(found.mean(kernel), expected.mean(kernel), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("noise", "options", "message"),
    [
        (0.0, {}, "noise above 0"),
        (float("nan"), {}, "noise above 0"),
        (1.0, {"rank": 0}, "rank"),
        (1.0, {"method": "love"}, "nystrom"),
        (1.0, {"alpha": torch.ones(3)}, "alpha of shape"),
    ],
)
def test_arguments_out_of_range_are_refused(noise, options, message):
    with pytest.raises(ConfigError, match=message):
        posterior(rbf(10), torch.ones(10), noise, **options)


def test_shapes_that_do_not_fit_are_refused():
    found = posterior(rbf(10), torch.ones(10), 1.0)
    with pytest.raises(ConfigError, match="10 samples"):
        posterior(rbf(10), torch.ones(9), 1.0)
    with pytest.raises(ConfigError, match=r"\(M, 10\)"):
        found.mean(torch.ones(3, 9))
    with pytest.raises(ConfigError, match="diagonal_M"):
        found.variance(torch.ones(3, 10), torch.ones(4))
    with pytest.raises(ConfigError, match="kernel_MM"):
        found.covariance(torch.ones(3, 10), torch.ones(4, 4))


def test_an_indefinite_covariance_is_refused():
    with pytest.raises(NumericalError, match="not positive definite"):
        posterior(rbf(30) - 0.5 * torch.eye(30, dtype=torch.float64), torch.ones(30), 0.1)
