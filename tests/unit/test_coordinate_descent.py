"""Block Gauss-Seidel and ASkotch: fixed points, passes, memory, and what they say when they cannot converge."""

import math

import pytest
import torch
from array_tiles import ArrayTiles
from solving import exact, laplace, rbf, solver_of, targets

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.metered import MeteredOperator
from ntkpipe.workers.solvers.descent.askotch import Momentum
from ntkpipe.workers.solvers.descent.gauss_seidel import factorise
from ntkpipe.workers.solvers.solve import solve, solve_operator
from ntkpipe.workers.solvers.system import make_system

METHODS = ["gauss-seidel", "askotch"]


def relative_error(solution, matrix, y, ridge):
    expected = exact(matrix, y, ridge)
    return float((solution.alpha - expected).norm() / expected.norm())


def energy(matrix, y, ridge, alpha):
    return float((alpha * (matrix @ alpha + ridge * alpha)).sum() / 2 - (alpha * y).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ridge", [0.1, 1.0])
@pytest.mark.parametrize("block_rows", [7, 50, 1000])
def test_the_fixed_point_is_the_exact_ridge_solution(method, ridge, block_rows):
    matrix, y = laplace(120), targets(120)
    solution = solve(matrix, y, method=method, ridge=ridge, block_rows=block_rows, epochs=2000, tolerance=1e-9)
    assert solution.converged
    assert relative_error(solution, matrix, y, ridge) <= 1e-7


@pytest.mark.parametrize("method", METHODS)
def test_float32_rows_reach_a_tolerance_that_float32_allows_and_float64_any(method):
    matrix, y = laplace(200, clusters=4, dtype=torch.float32), targets(200)
    for tolerance in (2e-5, 1e-9):
        solution = solve(matrix, y, method=method, ridge=1.0, block_rows=40, epochs=2000, tolerance=tolerance)
        assert solution.converged
        assert float(solution.residuals.max()) <= tolerance


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_is_one_pass_and_one_more_is_the_certificate(method):
    matrix, y = laplace(200), targets(200)
    solution = solve(matrix, y, method=method, ridge=1.0, block_rows=40, epochs=1)
    assert solution.status == "budget"
    # ASkotch looks where it has ended before it says so, which is one more pass.
    assert solution.stats["passes"] == pytest.approx(2.0 if method == "gauss-seidel" else 3.0)


def test_a_single_block_of_gauss_seidel_is_the_exact_solution_after_one_epoch():
    matrix, y = laplace(90), targets(90)
    solution = solve(matrix, y, method="gauss-seidel", ridge=0.01)
    assert solution.converged
    assert solution.stats["steps"] == 1
    assert relative_error(solution, matrix, y, 0.01) <= 1e-10


@pytest.mark.parametrize("order", ["random", "cyclic"])
def test_an_epoch_of_gauss_seidel_is_that_of_its_definition(order):
    matrix, y, ridge = laplace(10), targets(10), 0.3
    solution = solve(matrix, y, method="gauss-seidel", ridge=ridge, block_rows=1, order=order, seed=3)
    system = matrix + ridge * torch.eye(10, dtype=torch.float64)
    if order == "cyclic":
        # One sweep of Gauss-Seidel from zero solves the lower triangle.
        torch.testing.assert_close(solution.alpha, torch.linalg.solve(system.tril(), y))
    else:
        assert energy(matrix, y, ridge, solution.alpha) < 0
        again = solve(matrix, y, method="gauss-seidel", ridge=ridge, block_rows=1, order=order, seed=4)
        assert not torch.equal(solution.alpha, again.alpha)


def test_energy_never_grows_from_epoch_to_epoch():
    matrix, y, ridge = laplace(120, clusters=6), targets(120), 1e-3
    found = [
        solve(matrix, y, method="gauss-seidel", ridge=ridge, block_rows=30, epochs=epochs).alpha
        for epochs in (1, 2, 3, 4)
    ]
    energies = [0.0, *(energy(matrix, y, ridge, alpha) for alpha in found)]
    assert energies == sorted(energies, reverse=True)


def test_one_pass_of_gauss_seidel_gets_further_than_one_of_conjugate_gradients():
    matrix, y = laplace(400, clusters=8), targets(400)
    sweep = solve(matrix, y, method="gauss-seidel", ridge=1e-2, block_rows=100)
    step = solve(matrix, y, method="pcg", ridge=1e-2, iterations=1, preconditioner="none")
    assert energy(matrix, y, 1e-2, sweep.alpha) < energy(matrix, y, 1e-2, step.alpha)


def test_gauss_seidel_reads_whole_rows_of_tiles():
    matrix, y = laplace(96), targets(96)
    tiles = ArrayTiles(matrix.numpy(), 32)
    metered = MeteredOperator(BlockedOperator(tiles))
    solve_operator(solver_of("gauss-seidel"), metered, y, 1.0)
    assert metered.passes == pytest.approx(2.0)
    # Every row of tiles is read once, and the certificate reads the triangle.
    assert sum(tiles.reads.values()) == 9 + 6


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_without_ridge_are_solved_where_the_targets_allow_it(method):
    matrix = laplace(40).repeat(2, 2)
    y = matrix @ targets(80)
    solution = solve(matrix, y, method=method, ridge=0.0, block_rows=30, epochs=3000, tolerance=1e-5)
    assert solution.converged


@pytest.mark.parametrize("method", METHODS)
def test_an_indefinite_block_is_noticed_and_what_was_best_is_kept(method):
    matrix, y = laplace(80), targets(80)
    matrix[40:, 40:] -= 2.0 * torch.eye(40, dtype=torch.float64)
    options = {"block_rows": 40, "order": "cyclic"} if method == "gauss-seidel" else {"block_rows": 40}
    solution = solve(matrix, y, method=method, ridge=0.0, epochs=20, **options)
    assert solution.status == "indefinite"
    assert bool((solution.residuals <= 1).all())
    assert math.isnan(solution.certificate.condition)


@pytest.mark.parametrize("method", METHODS)
def test_an_indefinite_matrix_of_definite_blocks_does_not_pass_in_silence(method):
    # Every block of one row is 1; together they have the eigenvalue 1 - 39 * 0.9.
    matrix = torch.eye(40, dtype=torch.float64) - 0.9 * (1 - torch.eye(40, dtype=torch.float64))
    solution = solve(matrix, targets(40), method=method, ridge=0.0, block_rows=1, epochs=30)
    assert solution.status == ("diverged" if method == "gauss-seidel" else "budget")
    assert torch.isfinite(solution.alpha).all()
    assert float(solution.residuals.max()) <= 1.0


def test_acceleration_that_diverges_is_turned_off(monkeypatch):
    matrix, y = laplace(120, clusters=4), targets(120)
    options = {"method": "askotch", "ridge": 0.1, "block_rows": 20, "rank": 10, "epochs": 500, "tolerance": 1e-6}
    assert float(solve(matrix, y, **options).extras["accelerated"]) == 1.0
    monkeypatch.setattr(Momentum, "of", classmethod(lambda cls, system, rows: cls(0.99, 50.0, 0.9)))
    solution = solve(matrix, y, **options)
    assert solution.converged
    assert float(solution.extras["accelerated"]) == 0.0
    assert relative_error(solution, matrix, y, 0.1) <= 1e-4


def test_acceleration_needs_fewer_passes():
    matrix, y = laplace(300, clusters=5), targets(300)
    options = {"method": "askotch", "ridge": 1e-2, "block_rows": 30, "rank": 15, "epochs": 2000, "tolerance": 1e-5}
    fast = solve(matrix, y, **options)
    slow = solve(matrix, y, **options, accelerated=False)
    assert fast.converged
    assert fast.stats["passes"] < slow.stats["passes"]


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_the_momentum_does_not_depend_on_the_unit_of_the_kernel(unit):
    y = targets(50)
    momentum = Momentum.of(make_system(DenseOperator(unit * laplace(50)), y, unit * 0.1), 5)
    reference = Momentum.of(make_system(DenseOperator(laplace(50)), y, 0.1), 5)
    assert (momentum.keep, momentum.stride, momentum.mix) == pytest.approx(
        (reference.keep, reference.stride, reference.mix)
    )


@pytest.mark.parametrize(("size", "rows"), [(40, 40), (250, 100)])
def test_blocks_have_a_hundred_rows_or_all_there_are(size, rows):
    # A block of all rows with a sketch of full rank is solved exactly.
    matrix, y = laplace(size), targets(size)
    solution = solve(matrix, y, method="askotch", ridge=0.5, tolerance=1e-6, epochs=200, accelerated=False)
    assert solution.converged
    assert (solution.stats["steps"] <= 2) == (rows == size)


def test_a_factor_of_a_block_tells_singular_from_indefinite():
    ones = torch.ones(6, 6, dtype=torch.float64)
    lower = factorise(ones, 0.0)
    torch.testing.assert_close(lower @ lower.T, ones, rtol=0, atol=1e-6)
    assert factorise(ones - 0.1 * torch.eye(6, dtype=torch.float64), 0.0) is None
    assert factorise(torch.zeros(3, 3, dtype=torch.float64), 0.0) is None
    assert factorise(rbf(20) - 0.1 * torch.eye(20, dtype=torch.float64), 0.2) is not None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("option", ["block_rows", "epochs"])
def test_counts_start_at_one(method, option):
    with pytest.raises(ConfigError, match=option):
        solve(rbf(5), torch.ones(5), method=method, **{option: 0})
