"""Models on centres: what they converge to, what they say of it, and what they read."""

import dataclasses

import pytest
import torch
from array_tiles import ArrayTiles
from solving import Killed, MemoryCheckpoint, exact, laplace, rbf, solver_of, targets

import ntkpipe
from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.centres.factors import normal_factors
from ntkpipe.workers.solvers.centres.fit import fit_centres
from ntkpipe.workers.solvers.solve import solve, solve_operator
from ntkpipe.workers.solvers.system import make_system

METHODS = {
    "falkon": {"tolerance": 1e-9},
    "eigenpro3": {"epochs": 30},
    "eigenpro4": {"epochs": 30},
}


def oracle(between_NP, among_PP, y, ridge):
    """Solve the normal equations by least squares in float64."""
    normal_PP = between_NP.T @ between_NP + ridge * among_PP
    return torch.linalg.lstsq(normal_PP, between_NP.T @ y, driver="gelsd").solution


def oracle_of(matrix, centres, y, ridge):
    return oracle(matrix[:, centres], matrix[centres][:, centres], y, ridge)


def residuals(matrix, centres, alpha, y, ridge):
    between_NP = matrix[:, centres]
    fitted = between_NP @ alpha[centres]
    return (between_NP.T @ (fitted - y) + ridge * fitted[centres]).norm(dim=0) / (between_NP.T @ y).norm(dim=0)


def realisable(matrix, *, centres=50, seed=0, columns=3):
    """Return targets that a model on the centres which the solvers draw fits exactly."""
    chosen = solve(matrix, torch.ones(len(matrix)), method="falkon", centres=centres, seed=seed).extras["centres"]
    return matrix[:, chosen] @ targets(centres, columns=columns)


@pytest.mark.parametrize("kernel", [rbf, laplace])
@pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
def test_falkon_solves_its_normal_equations(kernel, ridge):
    matrix, y = kernel(300), targets(300)
    solution = solve(matrix, y, method="falkon", ridge=ridge, centres=60, tolerance=1e-10)
    centres = solution.extras["centres"]
    expected = oracle_of(matrix, centres, y, ridge)
    assert solution.converged
    assert solution.certificate.equation == "centres"
    fitted = matrix[:, centres] @ expected
    torch.testing.assert_close(solution.fitted, fitted, rtol=0, atol=1e-7)
    torch.testing.assert_close(
        solution.residuals, residuals(matrix, centres, solution.alpha, y, ridge), rtol=1e-2, atol=1e-13
    )


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_are_zero_outside_the_centres(method):
    solution = solve(laplace(100), targets(100), method=method, centres=20)
    outside = torch.ones(100, dtype=torch.bool)
    outside[solution.extras["centres"]] = False
    assert not solution.alpha[outside].any()
    assert solution.alpha[~outside].any()


@pytest.mark.parametrize("ridge", [1e-2, 1.0])
def test_when_all_samples_are_centres_it_is_kernel_ridge_regression(ridge):
    matrix, y = laplace(120), targets(120)
    solution = solve(matrix, y, method="falkon", ridge=ridge, centres=120, tolerance=1e-10)
    assert solution.converged
    assert solution.stats["steps"] <= 4
    torch.testing.assert_close(solution.alpha, exact(matrix, y, ridge), rtol=0, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("method", METHODS)
def test_units_of_targets_and_kernels_change_nothing_else(method, unit):
    matrix, y = laplace(120), targets(120)
    options = {"method": method, "centres": 30, **METHODS[method]} | ({"epochs": 5} if method != "falkon" else {})
    plain = solve(matrix, y, ridge=0.1, **options).fitted
    torch.testing.assert_close(solve(matrix, unit * y, ridge=0.1, **options).fitted / unit, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(solve(unit * matrix, y, ridge=unit * 0.1, **options).fitted, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["eigenpro3", "eigenpro4"])
@pytest.mark.parametrize("projection", ["cholesky", "eigenpro2"])
def test_targets_that_a_model_can_fit_are_fitted(method, projection):
    matrix = laplace(300)
    y = realisable(matrix)
    operator = DenseOperator(matrix, block_rows=64)
    solver = solver_of(method, centres=50, epochs=400, tolerance=1e-5, projection=projection)
    solution = solve_operator(solver, operator, y, 0.0)
    assert solution.converged
    assert float((solution.fitted - y).norm() / y.norm()) <= 1e-2
    assert float(residuals(matrix, solution.extras["centres"], solution.alpha, y, 0.0).max()) <= 1e-5


@pytest.mark.parametrize("method", ["eigenpro3", "eigenpro4"])
@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_noisy_targets_are_fitted_up_to_the_noise_of_the_steps_and_never_called_converged_before(method, ridge):
    matrix, y = laplace(300), targets(300)
    operator = DenseOperator(matrix, block_rows=64)
    solution = solve_operator(solver_of(method, centres=50, epochs=40), operator, y, ridge)
    centres = solution.extras["centres"]
    fitted = matrix[:, centres] @ oracle_of(matrix, centres, y, ridge)
    assert float((solution.fitted - fitted).norm() / fitted.norm()) <= 0.2
    assert solution.status == "budget"
    found = residuals(matrix, centres, solution.alpha, y, ridge)
    assert float(found.max()) > 1e-4
    torch.testing.assert_close(solution.residuals, found, rtol=1e-9, atol=0)


def descended(solver, matrix, y, ridge, *, batch_rows):
    """Run a solver whose blocks of rows are batches."""
    system = make_system(DenseOperator(matrix, block_rows=batch_rows), y, ridge)
    state = solver.init(system)
    while state.status is None:
        state = solver.step(system, dataclasses.replace(state, batch_rows=batch_rows))
    return state


@pytest.mark.parametrize("method", ["eigenpro3", "eigenpro4"])
@pytest.mark.parametrize("ridge", [0.0, 1.0])
def test_without_noise_of_steps_the_limit_is_least_squares_with_noisy_targets_too(method, ridge):
    matrix, y = laplace(60), targets(60)
    solver = solver_of(method, centres=20, subsample=10, top=6, epochs=600, tolerance=1e-6)
    state = descended(solver, matrix, y, ridge, batch_rows=60)
    assert state.status == "converged"
    expected = oracle_of(matrix, state.centres_P, y, ridge)
    torch.testing.assert_close(state.solved_PT, expected, rtol=0, atol=1e-3)


def test_projecting_every_block_is_projecting_every_batch_where_a_block_is_a_batch():
    matrix, y = laplace(100), targets(100)
    third, fourth = (
        descended(solver_of(method, centres=40, epochs=3, **options), matrix, y, 0.5, batch_rows=10)
        for method, options in (("eigenpro3", {}), ("eigenpro4", {"delay": 1}))
    )
    torch.testing.assert_close(third.alpha_NT, fourth.alpha_NT, rtol=0, atol=1e-9)


@pytest.mark.parametrize("delay", [1, 2, 3, 100])
def test_a_delayed_projection_loses_nothing(delay):
    matrix = laplace(300)
    y = realisable(matrix)
    solver = solver_of("eigenpro4", centres=50, epochs=150, delay=delay, tolerance=1e-5)
    solution = solve_operator(solver, DenseOperator(matrix, block_rows=32), y, 0.0)
    assert float((solution.fitted - y).norm() / y.norm()) <= 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_stored_tiles_give_the_solution_of_the_matrix_in_memory(method):
    matrix, y = laplace(90), targets(90)
    solver = solver_of(method, centres=20, **METHODS[method])
    stored = solve_operator(solver, BlockedOperator(ArrayTiles(matrix.numpy(), 32)), y, 0.1)
    dense = solve_operator(solver, DenseOperator(matrix, block_rows=32), y, 0.1)
    assert torch.equal(stored.alpha, dense.alpha)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("falkon", {"tolerance": 1e-9}),
        ("eigenpro3", {"epochs": 2}),
        ("eigenpro4", {"epochs": 2, "delay": 2}),
        ("eigenpro4", {"epochs": 2, "projection": "eigenpro2"}),
    ],
)
def test_a_killed_solve_goes_on_and_ends_with_the_same_bits(method, options):
    operator, y = BlockedOperator(ArrayTiles(laplace(90).numpy(), 20)), targets(90)
    solver = solver_of(method, centres=30, **options)
    whole = solve_operator(solver, operator, y, 0.1)
    for dies_after in (1, 2, 3, 5, 8):
        checkpoint = MemoryCheckpoint(dies_after)
        with pytest.raises(Killed):
            solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
        checkpoint.dies_after = None
        resumed = solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
        assert torch.equal(resumed.alpha, whole.alpha)
        assert resumed.certificate.passes == pytest.approx(whole.certificate.passes)


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_among_the_centres_are_no_problem(method):
    matrix, y = laplace(60).repeat(2, 2), targets(120)
    solution = solve(matrix, y, method=method, ridge=0.1, centres=100, **METHODS[method])
    centres = solution.extras["centres"]
    fitted = matrix[:, centres] @ oracle_of(matrix, centres, y, 0.1)
    error = float((solution.fitted - fitted).norm() / fitted.norm())
    assert error <= (1e-6 if method == "falkon" else 0.3)
    jitter = next(value for name, value in solution.extras.items() if name.endswith("jitter"))
    assert 0 < float(jitter) < 1e-6
    assert solution.jitter == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("size", "centres"), [(1, 1), (2, 1), (3, 2), (5, 5)])
def test_tiny_systems_are_solved(method, size, centres):
    matrix, y = laplace(size), targets(size)
    solution = solve(matrix, y, method=method, ridge=0.5, centres=centres, **METHODS[method])
    chosen = solution.extras["centres"]
    expected = matrix[:, chosen] @ oracle_of(matrix, chosen, y, 0.5)
    assert torch.isfinite(solution.alpha).all()
    assert float((solution.fitted - expected).norm() / expected.norm()) <= (1e-8 if method == "falkon" else 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_more_centres_than_samples_are_refused(method):
    with pytest.raises(ConfigError, match="centres = 11 exceeds the 10 samples"):
        solve(laplace(10), targets(10), method=method, centres=11)


@pytest.mark.parametrize("method", METHODS)
def test_an_indefinite_matrix_is_called_so(method):
    matrix = rbf(60) - 0.9 * torch.eye(60, dtype=torch.float64)
    for kernel in (matrix, torch.zeros(60, 60, dtype=torch.float64)):
        solution = solve(kernel, targets(60), method=method, ridge=0.0, centres=30)
        assert solution.status == "indefinite"
        assert not solution.alpha.any()


@pytest.mark.parametrize("method", METHODS)
def test_zero_targets_have_zero_coefficients(method):
    y = targets(60)
    y[:, 1] = 0
    solution = solve(laplace(60), y, method=method, centres=20, **METHODS[method])
    assert not solution.alpha[:, 1].any()
    assert float(solution.residuals[1]) == 0


def test_too_few_iterations_are_reported():
    solution = solve(laplace(200), targets(200), method="falkon", centres=50, ridge=1e-3, iterations=3)
    assert solution.status == "budget"
    assert float(solution.residuals.max()) > 1e-6


def test_a_tolerance_below_rounding_ends_and_is_not_called_converged():
    solution = solve(rbf(200), targets(200), method="falkon", centres=80, ridge=0.0, tolerance=1e-18, iterations=1000)
    assert solution.status == "stagnated"
    assert float(solution.residuals.max()) <= 1e-6


def test_float32_kernels_are_solved_to_their_precision():
    matrix, y = laplace(200, dtype=torch.float32), targets(200)
    solution = solve(matrix, y, method="falkon", centres=50, ridge=0.1, tolerance=1e-5)
    centres = solution.extras["centres"]
    assert solution.converged
    assert float(residuals(matrix.double(), centres, solution.alpha, y, 0.1).max()) <= 1e-5


def test_weights_are_those_of_the_squared_errors():
    matrix, y = laplace(80), targets(80)
    weights = torch.linspace(0.5, 2, 80, dtype=torch.float64)
    solution = solve(matrix, y, method="falkon", centres=20, ridge=0.1, tolerance=1e-10, sample_weights=weights)
    centres = solution.extras["centres"]
    between_NP, among_PP = matrix[:, centres], matrix[centres][:, centres]
    weighted = between_NP.T @ (weights.unsqueeze(1) * between_NP) + 0.1 * among_PP
    expected = torch.linalg.solve(weighted, between_NP.T @ (weights.unsqueeze(1) * y))
    torch.testing.assert_close(solution.alpha[centres], expected, rtol=0, atol=1e-6)


def test_a_warm_start_at_the_solution_is_not_left():
    matrix, y = laplace(80), targets(80)
    first = solve(matrix, y, method="falkon", centres=20, ridge=0.1, tolerance=1e-10)
    again = solve(matrix, y, method="falkon", centres=20, ridge=0.1, tolerance=1e-10, warm_start=first.alpha)
    torch.testing.assert_close(again.alpha, first.alpha, rtol=0, atol=1e-6)


def test_a_step_reads_only_what_is_between_samples_and_centres():
    matrix, y = laplace(200), targets(200)
    solution = solve(matrix, y, method="falkon", centres=20, ridge=0.1)
    assert solution.stats["passes"] == pytest.approx(0.1 * 0.1 + 0.1 * (solution.stats["steps"] + 1))


def points(num, seed):
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("method", METHODS)
def test_centres_need_not_be_samples(method):
    z, x, y = points(25, 1), points(150, 2), targets(150)
    operator = ntkpipe.closed_form_operator("laplace", torch.cat([z, x]), bandwidth=2.0, block_rows=40)
    solution = fit_centres(
        operator, y, centres=range(25), samples=range(25, 175), method=method, ridge=0.1, **METHODS[method]
    )
    between_NP = ntkpipe.closed_form("laplace", x, z, bandwidth=2.0)
    expected = oracle(between_NP, ntkpipe.closed_form("laplace", z, bandwidth=2.0), y, 0.1)
    assert solution.alpha.shape == (25, 3)
    torch.testing.assert_close(solution.fitted, between_NP @ solution.alpha, rtol=0, atol=1e-9)
    error = float((solution.fitted - between_NP @ expected).norm() / (between_NP @ expected).norm())
    assert error <= (1e-7 if method == "falkon" else 0.2)


def test_coefficients_are_in_the_order_of_the_centres():
    matrix, y = laplace(60), targets(60)
    order = torch.tensor([40, 3, 17, 58])
    solution = fit_centres(DenseOperator(matrix), y[:, 0], centres=order, ridge=0.2, tolerance=1e-10)
    torch.testing.assert_close(solution.alpha, oracle_of(matrix, order, y[:, :1], 0.2), rtol=0, atol=1e-7)
    torch.testing.assert_close(solution.fitted, matrix[:, order] @ solution.alpha, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"centres": [0, 0]}, "distinct positions"),
        ({"centres": [0, 60]}, "from 0 to 59"),
        ({"centres": range(5), "samples": range(50)}, r"expected \(50, T\) targets"),
        ({"centres": range(5), "method": "cholesky"}, "does not fit centres|unknown option"),
        ({"centres": range(5), "epochs": 3}, "unknown option of falkon"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    arguments = arguments | {"centres": torch.tensor(list(arguments["centres"]))}
    with pytest.raises(ConfigError, match=message):
        fit_centres(DenseOperator(laplace(60)), targets(60), **arguments)


def test_the_packed_factors_precondition_the_normal_equations():
    matrix = laplace(40)
    factors, jitter = normal_factors(matrix, num_samples=40, ridge=0.3, dtype=torch.float64)
    normal = matrix @ matrix + 0.3 * matrix
    assert jitter == 0
    torch.testing.assert_close(factors.solve(normal), torch.eye(40, dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_long_step_is_undone_and_halved():
    matrix = laplace(200)
    system = make_system(DenseOperator(matrix, block_rows=50), realisable(matrix, centres=40), 0.1)
    solver = solver_of("eigenpro4", epochs=20, centres=40)
    state = dataclasses.replace(solver.init(system), step_scale=16.0)
    while state.status is None:
        state = solver.step(system, state)
    assert state.step_scale <= 8
    assert state.best_residual < 0.2
