"""EigenPro 2: its fixed point, its step, and what it says when it cannot converge."""

import dataclasses

import numpy as np
import pytest
import torch
from array_tiles import ArrayTiles
from golden import KRR_ALPHA, TRNTK0
from solving import laplace, solver_of, targets

from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.descent.flattening import is_indefinite, leading_pairs
from ntkpipe.workers.solvers.descent.window import Window, descend
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


def test_steps_within_a_window_are_those_of_batches_that_read_their_rows_anew():
    matrix, y, ridge = laplace(120), targets(120), 0.3
    points, rows = torch.arange(0, 120, 4), torch.arange(30, 60)
    eigenvalues, vectors = torch.linalg.eigh(matrix[points][:, points])
    directions, damping = vectors[:, -5:], 0.9 / eigenvalues[-5:].unsqueeze(1)
    alpha = targets(120, seed=8)
    features = matrix[rows][:, points] @ directions
    responses = features.clone()
    here = (points >= 30) & (points < 60)
    responses[points[here] - 30] += ridge * directions[here]
    nugget = matrix[rows][:, rows] + ridge * torch.eye(30, dtype=torch.float64)
    fitted = matrix[rows] @ alpha + ridge * alpha[rows]
    batches = torch.randperm(30, generator=torch.Generator().manual_seed(1)).chunk(4)
    window = Window(nugget, features, responses, fitted, y[rows], damping)
    found = descend(window, batches, 1.0, np.random.default_rng(0))
    moved = alpha.clone()
    moved[rows] += found.changes_MT
    moved[points] += directions @ found.back_QT

    random = np.random.default_rng(0)
    for batch in batches:
        at = rows[batch]
        gradient = matrix[at] @ alpha + ridge * alpha[at] - y[at]
        part = matrix[at][:, points] @ directions
        block = nugget[batch][:, batch] - part @ (damping * part.T)
        vector = torch.from_numpy(random.standard_normal((len(batch), 1)))
        for _ in range(8):
            vector = block @ (vector / vector.norm())
        rate = 1.5 / float(vector.norm())
        alpha[at] -= rate * gradient
        alpha[points] += rate * directions @ (damping * (part.T @ gradient))
        torch.testing.assert_close(found.gradients_MT[batch], gradient, rtol=0, atol=1e-10)
    torch.testing.assert_close(moved, alpha, rtol=0, atol=1e-10)


def test_a_decay_is_a_preconditioned_step_towards_zero():
    matrix, ridge = laplace(80), 5.0
    points, rows = torch.arange(0, 80, 2), torch.arange(80)
    eigenvalues, vectors = torch.linalg.eigh(matrix[points][:, points])
    directions, values = vectors[:, -4:], eigenvalues[-4:].unsqueeze(1)
    damping, alpha = 0.8 / values, targets(80, seed=8)
    features = matrix[:, points] @ directions
    fitted = matrix @ alpha
    window = Window(matrix, features, features, fitted, fitted, damping, ridge / 80, features.T @ alpha, values)
    found = descend(window, [rows], 1.0, np.random.default_rng(0))
    moved = found.kept * alpha + found.changes_MT
    moved[points] += directions @ found.back_QT
    # Targets are what is predicted already, so that nothing but the decay moves the model.
    held = torch.zeros_like(alpha)
    held[points] = directions @ (damping * (features.T @ alpha))
    torch.testing.assert_close(moved, alpha - (1 - found.kept) * (alpha - held), rtol=0, atol=1e-10)
    assert 0 < found.kept < 1


@pytest.mark.parametrize("num_pairs", [5, 20, 100])
def test_leading_pairs_are_orthonormal_and_never_exceed_the_true_eigenvalues(num_pairs):
    matrix = laplace(300)
    values, vectors = leading_pairs(matrix, num_pairs, np.random.default_rng(0))
    true = torch.linalg.eigvalsh(matrix).flip(0)[:num_pairs]
    assert (values <= true * (1 + 1e-12)).all()
    assert (values >= 0.9 * true).all()
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(num_pairs, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close((vectors.T @ matrix @ vectors).diagonal(), values, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("shift", "ridge", "found"), [(0.0, 0.0, False), (0.5, 0.0, True), (0.5, 0.6, False)])
def test_a_principal_submatrix_shows_what_is_indefinite(shift, ridge, found):
    matrix = laplace(100) - shift * torch.eye(100, dtype=torch.float64)
    largest = float(torch.linalg.eigvalsh(matrix)[-1]) + ridge
    assert is_indefinite(matrix, ridge, largest) is found


def test_coefficients_change_at_the_end_of_an_epoch_and_every_block_can_be_stored():
    system = make_system(DenseOperator(laplace(100), block_rows=30), targets(100), 0.1)
    solver = solver_of("eigenpro2", epochs=2, subsample=40, top=10)
    state = solver.init(system)
    for blocks_done in (1, 2, 3):
        state = solver.step(system, state)
        assert (state.steps, state.blocks_done) == (0, blocks_done)
        assert not state.alpha_NT.any()
        assert state.moving_NT.any()
    state = solver.step(system, state)
    assert (state.steps, state.blocks_done) == (1, 0)
    assert torch.equal(state.alpha_NT, state.moving_NT)
