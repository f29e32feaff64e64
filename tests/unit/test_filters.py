"""Spectral filters against their definitions, and a certificate that can fail."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import Killed, MemoryCheckpoint, exact, laplace, rbf, solver_of, targets

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_solve
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.solve import solve, solve_operator
from ntkpipe.workers.solvers.spectral.filters import response
from ntkpipe.workers.solvers.system import make_system


def filtered(matrix, y, **options):
    return solve(matrix, y, method="filter", **options)


def test_the_ridge_filter_is_ridge_regression():
    matrix, y = laplace(80), targets(80) * torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)
    solution = filtered(matrix, y, ridge=0.3)
    torch.testing.assert_close(
        solution.alpha / y.norm(dim=0), exact(matrix, y, 0.3) / y.norm(dim=0), rtol=0, atol=1e-11
    )
    assert (solution.status, solution.certificate.equation) == ("converged", "filter")
    values = torch.linalg.eigvalsh(matrix).flip(0)
    torch.testing.assert_close(solution.extras["eigenvalues"], values)
    assert float(solution.extras["degrees_of_freedom"]) == pytest.approx(float((values / (values + 0.3)).sum()))


def test_gradient_descent_is_that_many_steps_from_zero():
    matrix, y = laplace(50), targets(50)
    step = 1.5 / float(torch.linalg.eigvalsh(matrix)[-1])
    alpha = torch.zeros_like(y)
    for _ in range(37):
        alpha += step * (y - matrix @ alpha)
    solution = filtered(matrix, y, filter="gradient-descent", num_iterations=37, step_size=step)
    torch.testing.assert_close(solution.alpha, alpha, rtol=0, atol=1e-11)


def test_gradient_flow_is_the_limit_of_short_steps_and_learns_everything_in_the_end():
    matrix, y = laplace(40), targets(40)
    flow = filtered(matrix, y, filter="gradient-flow", time=2.0)
    steps = filtered(matrix, y, filter="gradient-descent", num_iterations=200_000, step_size=1e-5)
    torch.testing.assert_close(flow.alpha, steps.alpha, rtol=0, atol=2e-4 * float(flow.alpha.norm()))
    decayed = torch.linalg.matrix_exp(-2.0 * matrix) @ y
    torch.testing.assert_close(flow.fitted, y - decayed, rtol=0, atol=1e-11)
    torch.testing.assert_close(filtered(matrix, y, filter="gradient-flow", time=1e6).fitted, y, rtol=0, atol=1e-9)


def test_iterated_ridge_regression_fits_what_was_left():
    matrix, y = laplace(40), targets(40)
    alpha = torch.zeros_like(y)
    for _ in range(3):
        alpha = alpha + exact(matrix, y - matrix @ alpha, 0.7)
    found = filtered(matrix, y, filter="iterated-ridge", num_iterations=3, ridge=0.7).alpha
    torch.testing.assert_close(found, alpha, rtol=0, atol=1e-11)


def test_a_cutoff_inverts_the_large_eigenvalues_and_no_others():
    matrix, y = rbf(60), targets(60)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    share = float((values[9] + values[10]) / 2 / values[0])
    expected = vectors[:, :10] @ ((vectors[:, :10].T @ y) / values[:10].unsqueeze(1))
    by_threshold = filtered(matrix, y, filter="cutoff", threshold=share, ridge=0.0)
    by_number = filtered(matrix, y, filter="cutoff", num_directions=10)
    for solution in (by_threshold, by_number):
        assert solution.converged
        torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-9)
        assert float(solution.extras["degrees_of_freedom"]) == pytest.approx(10)
    too_few = filtered(matrix, y, filter="cutoff", threshold=share, num_directions=5)
    assert too_few.status == "budget"


def test_a_transformed_kernel_is_regressed_on_and_predicts_new_samples():
    matrix, y = laplace(60), targets(50)
    samples, new = matrix[:50, :50], matrix[50:, :50]
    powers = (0.5, 0.0, 2.0)
    transformed = 0.5 * samples + 2.0 * samples @ samples @ samples / 50**2
    between = 0.5 * new + 2.0 * new @ samples @ samples / 50**2
    solution = filtered(samples, y, filter="transformed", powers=powers, ridge=0.2)
    beta = exact(transformed, y, 0.2)
    torch.testing.assert_close(solution.fitted, transformed @ beta, rtol=0, atol=1e-11)
    torch.testing.assert_close(solution.predict(new), between @ beta, rtol=0, atol=1e-11)
    plain = filtered(samples, y, filter="transformed", powers=(1.0,), ridge=0.2)
    torch.testing.assert_close(plain.alpha, exact(samples, y, 0.2), rtol=0, atol=1e-11)


def test_an_inverse_laplacian_is_the_sum_of_all_powers():
    matrix, y = laplace(40), targets(40)
    eta = 0.5 * 40 / float(torch.linalg.eigvalsh(matrix)[-1])
    laplacian = matrix @ torch.linalg.inv(torch.eye(40, dtype=torch.float64) - eta * matrix / 40)
    solution = filtered(matrix, y, filter="transformed", inverse_laplacian=eta, ridge=0.2)
    torch.testing.assert_close(solution.fitted, laplacian @ exact(laplacian, y, 0.2), rtol=0, atol=1e-10)
    series = filtered(matrix, y, filter="transformed", powers=tuple(eta**p for p in range(60)), ridge=0.2)
    torch.testing.assert_close(series.alpha, solution.alpha, rtol=0, atol=1e-10)
    with pytest.raises(ConfigError, match="too large for the largest eigenvalue"):
        filtered(matrix, y, filter="transformed", inverse_laplacian=2.1 * eta)


FILTERS = [
    {"filter": "ridge"},
    {"filter": "iterated-ridge", "num_iterations": 7},
    {"filter": "gradient-flow", "time": 3.0},
    {"filter": "gradient-descent", "num_iterations": 9},
    {"filter": "cutoff", "threshold": 0.25},
    {"filter": "transformed", "powers": (1.0, 2.0)},
]


@settings(max_examples=60, deadline=None)
@given(options=st.sampled_from(FILTERS), exponent=st.floats(-14, 0))
def test_every_filter_learns_between_nothing_and_everything_and_is_finite_at_zero(options, exponent):
    config = load_solve("filter", {**options, "ridge": 0.1})
    values = torch.tensor([1.0, 10**exponent, 0.0], dtype=torch.float64)
    found = response(config, values, 0.1, 1.0, 3)
    shares = values * found
    assert bool(torch.isfinite(found).all())
    assert bool((shares >= 0).all())
    assert bool((shares <= 1 + 1e-12).all())
    assert float(shares[0]) >= float(shares[1]) - 1e-15
    if options["filter"] != "cutoff" and exponent < -4:
        assert float(found[1]) == pytest.approx(float(found[2]), rel=100 * 10**exponent + 1e-9)


@pytest.mark.parametrize("options", FILTERS)
def test_no_filter_sees_units_of_targets_or_duplicates(options):
    matrix, y = laplace(30).repeat(2, 2), targets(60)
    first, second = filtered(matrix, y, **options), filtered(matrix, 1e-8 * y, **options)
    assert first.converged
    torch.testing.assert_close(second.alpha, 1e-8 * first.alpha, rtol=1e-12, atol=0)


def test_some_directions_answer_as_if_all_other_eigenvalues_were_zero():
    matrix, y = rbf(60), targets(60)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    kept = vectors[:, :15] @ torch.diag(values[:15]) @ vectors[:, :15].T
    solution = filtered(matrix, y, ridge=0.5, num_directions=15)
    torch.testing.assert_close(solution.alpha, exact(kept, y, 0.5), rtol=0, atol=1e-9)
    expected = (matrix @ solution.alpha - kept @ exact(kept, y, 0.5)).norm(dim=0) / y.norm(dim=0)
    torch.testing.assert_close(solution.residuals, expected, rtol=1e-4, atol=1e-9)
    assert solution.status == "stagnated"
    assert float(solution.residuals.max()) > 1e-3


def test_directions_are_found_by_iteration_where_that_is_cheaper(monkeypatch):
    from ntkpipe.workers.spectra import eigenpairs

    monkeypatch.setattr(eigenpairs, "FULL_LIMIT", 10)
    matrix, y = laplace(200), targets(200)
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    expected = vectors[:, :6] @ ((vectors[:, :6].T @ y) / values[:6].unsqueeze(1))
    solution = filtered(matrix, y, filter="cutoff", num_directions=6, tolerance=1e-8)
    assert solution.converged
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-7)
    assert solution.stats["passes"] > 4


def test_the_certificate_fails_for_other_coefficients_and_other_eigenvectors():
    matrix, y = laplace(30), targets(30)
    solver, system = solver_of("filter", ridge=0.1), make_system(DenseOperator(matrix), y, 0.1)
    state = solver.step(system, solver.init(system))
    assert float(solver.certify(system, state).residuals_T.max()) <= 1e-12
    wrong = replace(state, alpha_NT=1.001 * state.alpha_NT)
    assert float(solver.certify(system, wrong).residuals_T.min()) > 1e-5
    other = make_system(DenseOperator(laplace(30, seed=9)), y, 0.1)
    assert float(solver.certify(other, state).residuals_T.min()) > 1e-3
    assert float(solver.certify(system, replace(state, defects_T=torch.ones(3).double())).residuals_T.min()) >= 1


def test_an_indefinite_matrix_never_passes_in_silence():
    solution = filtered(rbf(40) - 0.9 * torch.eye(40, dtype=torch.float64), targets(40), ridge=1.0)
    assert solution.status == "indefinite"
    assert not solution.alpha.any()
    assert solution.residuals.tolist() == pytest.approx([1.0] * 3)


def test_the_zero_matrix_is_filtered():
    solution = filtered(torch.zeros(3, 3), torch.ones(3), filter="gradient-descent", num_iterations=4)
    assert solution.converged
    assert not solution.fitted.any()


def test_features_and_weights_are_filtered_as_ridge_regression_is():
    features, y = targets(40, columns=5, seed=2), targets(40)
    weights = torch.linspace(0.5, 2, 40, dtype=torch.float64)
    kernel = features @ features.T
    solution = solve(FeatureOperator(features), y, method="filter", ridge=0.4, sample_weights=weights)
    expected = torch.linalg.solve(kernel + 0.4 * torch.diag(1 / weights), y)
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-10)


def test_a_killed_solve_ends_with_the_same_bits():
    matrix, y = laplace(40), targets(40)
    solver = solver_of("filter", filter="gradient-flow", time=2.0)
    whole = solve_operator(solver, DenseOperator(matrix), y, 0.1)
    for dies_after in (1, 2):
        checkpoint = MemoryCheckpoint(dies_after)
        with pytest.raises(Killed):
            solve_operator(solver, DenseOperator(matrix), y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
        checkpoint.dies_after = None
        resumed = solve_operator(solver, DenseOperator(matrix), y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
        assert torch.equal(resumed.alpha, whole.alpha)
        assert torch.equal(resumed.extras["degrees_of_freedom"], whole.extras["degrees_of_freedom"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filter": "gradient-flow"}, "needs 'time'"),
        ({"filter": "gradient-descent"}, "needs 'num_iterations'"),
        ({"filter": "ridge", "time": 1.0}, "has no time"),
        ({"filter": "cutoff"}, "needs 'threshold' or 'num_directions'"),
        ({"filter": "transformed"}, "either 'powers' or 'inverse_laplacian'"),
        ({"filter": "transformed", "powers": (1.0,), "inverse_laplacian": 0.1}, "either"),
        ({"filter": "transformed", "powers": (0.0, 0.0)}, "all 0"),
        ({"filter": "ridge", "ridge": 0.0}, "needs a ridge above 0"),
        ({"filter": "gradient-descent", "num_iterations": 3, "step_size": 3.0}, "diverges"),
        ({"filter": "landweber"}, "filter"),
        ({"warm_start": torch.ones(4) / 4}, "cannot start from warm_start"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        filtered(torch.eye(4), torch.ones(4), **options)


def test_powers_of_long_descents_keep_their_digits():
    config = load_solve("filter", {"filter": "gradient-descent", "num_iterations": 10**6, "step_size": 1.0})
    value = 1e-12
    found = float(response(config, torch.tensor([value], dtype=torch.float64), 0.0, 1.0, 1))
    assert found == pytest.approx(-math.expm1(10**6 * math.log1p(-value)) / value, rel=1e-14)
