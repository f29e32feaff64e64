"""EigenPro 2: its fixed point, its step, and what it says when it cannot converge."""

import dataclasses

import pytest
import torch
from array_tiles import ArrayTiles
from golden import KRR_ALPHA, TRNTK0
from solving import laplace, solver_of, targets

from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.solve import solve, solve_operator
from ntkpipe.workers.solvers.system import make_system


def relative_error(solution, matrix, y, ridge):
    exact = torch.linalg.solve(matrix.double() + ridge * torch.eye(len(matrix), dtype=torch.float64), y)
    return float((solution.alpha - exact).norm() / exact.norm())


@pytest.mark.parametrize("ridge", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("subsample", "top"), [(40, 10), (250, 100), (250, 1000)])
def test_the_fixed_point_is_the_exact_ridge_solution(ridge, subsample, top):
    matrix, y = laplace(250), targets(250)
    solution = solve(
        matrix, y, method="eigenpro2", ridge=ridge, subsample=subsample, top=top, epochs=1500, tolerance=1e-10
    )
    assert solution.converged
    assert relative_error(solution, matrix, y, ridge) <= 1e-8


@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0, 1e6])
def test_the_diagonal_need_not_be_one(scale):
    matrix, y = laplace(200), targets(200)
    solution = solve(scale * matrix, y, method="eigenpro2", ridge=scale * 0.5, epochs=100, tolerance=1e-8)
    assert solution.converged
    assert relative_error(solution, scale * matrix, y, scale * 0.5) <= 1e-7


def test_a_diagonal_of_very_different_entries_is_solved():
    scales = torch.logspace(-1, 1, 200, dtype=torch.float64)[
        torch.randperm(200, generator=torch.Generator().manual_seed(2))
    ]
    matrix, y = laplace(200) * torch.outer(scales, scales), targets(200)
    solution = solve(matrix, y, method="eigenpro2", ridge=1.0, subsample=50, epochs=1000, tolerance=1e-8)
    assert solution.converged
    assert relative_error(solution, matrix, y, 1.0) <= 1e-6


def test_rows_sorted_by_class_do_not_make_it_diverge():
    matrix, y = laplace(1200, clusters=10), targets(1200)
    operator = DenseOperator(matrix, block_rows=120)
    solver = solver_of("eigenpro2", epochs=60, tolerance=1e-4, subsample=120, top=50)
    solution = solve_operator(solver, operator, y, 1.0)
    assert solution.converged
    assert relative_error(solution, matrix, y, 1.0) <= 1e-3


def test_a_low_rank_matrix_without_ridge_is_solved_where_the_targets_allow_it():
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    matrix, y = factor @ factor.T, factor @ torch.ones(5, 1, dtype=torch.float64)
    solution = solve(matrix, y, method="eigenpro2", ridge=0.0, epochs=60, tolerance=1e-8)
    assert solution.converged
    assert (matrix @ solution.alpha - y).norm() <= 1e-8 * y.norm()


@pytest.mark.parametrize("block_rows", [32, 64, 300])
def test_stored_tiles_give_the_bits_of_the_matrix_in_memory(block_rows):
    matrix, y = laplace(300), targets(300, columns=1)
    solver = solver_of("eigenpro2", epochs=5, tolerance=1e-9, subsample=80, top=20)
    stored = solve_operator(solver, BlockedOperator(ArrayTiles(matrix.numpy(), block_rows)), y, 0.1)
    dense = solve_operator(solver, DenseOperator(matrix, block_rows=block_rows), y, 0.1)
    assert torch.equal(stored.alpha, dense.alpha)


def test_the_seed_decides_every_bit():
    matrix, y = laplace(200), targets(200)
    runs = [solve(matrix, y, method="eigenpro2", epochs=3, subsample=50, seed=seed).alpha for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_fewer_samples_than_points_and_directions_are_no_problem(size):
    matrix, y = laplace(size), targets(size)
    solution = solve(matrix, y, method="eigenpro2", ridge=0.5, epochs=200, tolerance=1e-9)
    assert solution.converged
    assert relative_error(solution, matrix, y, 0.5) <= 1e-8


def test_the_golden_kernel_gives_the_golden_coefficients():
    matrix, y = torch.tensor(TRNTK0), torch.tensor([-1.0, 1.0, 1.0, -1.0])
    solution = solve(matrix, y, method="eigenpro2", ridge=1.0, epochs=500, tolerance=1e-10)
    torch.testing.assert_close(solution.alpha[:, 0], torch.tensor(KRR_ALPHA).double(), rtol=0, atol=5e-8)


def test_too_few_epochs_are_reported_with_the_true_residual():
    matrix, y = laplace(200), targets(200)
    solution = solve(matrix, y, method="eigenpro2", ridge=1e-3, epochs=1)
    true = (matrix @ solution.alpha + 1e-3 * solution.alpha - y).norm(dim=0) / y.norm(dim=0)
    assert solution.status == "budget"
    assert solution.stats["steps"] == 1
    torch.testing.assert_close(solution.residuals, true, rtol=1e-9, atol=0)
    assert 1e-4 < float(true.max()) < 1


def test_a_negative_eigenvalue_of_the_subsample_is_called_indefinite():
    matrix = laplace(200) - 0.5 * torch.eye(200, dtype=torch.float64)
    solution = solve(matrix, targets(200), method="eigenpro2", ridge=0.0)
    assert solution.status == "indefinite"
    assert not solution.alpha.any()


def test_a_negative_eigenvalue_that_the_subsample_misses_never_gives_worse_than_zero():
    matrix = laplace(300)
    vector = targets(300, columns=1)
    vector /= vector.norm()
    matrix -= 3 * vector @ vector.T
    solution = solve(matrix, targets(300), method="eigenpro2", ridge=0.0, subsample=10, top=5, epochs=200)
    assert solution.status in ("budget", "diverged", "indefinite")
    assert float(solution.residuals.max()) <= 1.0


def test_a_step_that_is_too_long_is_undone_and_halved():
    y = targets(200)
    system = make_system(DenseOperator(laplace(200)), y, 0.1)
    solver = solver_of("eigenpro2", epochs=200, tolerance=1e-6, subsample=50)
    state = dataclasses.replace(solver.init(system), step_scale=16.0)
    while state.status is None:
        state = solver.step(system, state)
    assert state.status == "converged"
    assert state.step_scale < 4
    assert relative_error(type("Found", (), {"alpha": state.alpha_NT}), laplace(200), y, 0.1) <= 1e-5


def test_float32_matrices_reach_tolerances_below_float32_when_asked_to():
    matrix, y = laplace(200, dtype=torch.float32), targets(200)
    solution = solve(matrix, y, method="eigenpro2", ridge=1.0, epochs=200, tolerance=1e-9)
    assert solution.converged
    assert relative_error(solution, matrix, y, 1.0) <= 1e-8
