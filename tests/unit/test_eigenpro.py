"""EigenPro 2: its fixed point, its step, and what it says when it cannot converge."""

import dataclasses

import numpy as np
import pytest
import torch
from array_tiles import ArrayTiles
from golden import KRR_ALPHA, TRNTK0
from hypothesis import given
from hypothesis import strategies as st
from solving import Killed, MemoryCheckpoint, laplace, solver_of, targets

from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.descent.flattening import is_indefinite, leading_pairs, smallest_eigenvalue
from ntkpipe.workers.solvers.descent.momentum import PACE, Motion, Pace
from ntkpipe.workers.solvers.descent.window import Window, descend
from ntkpipe.workers.solvers.solve import solve, solve_operator
from ntkpipe.workers.solvers.system import make_system


def relative_error(solution, matrix, y, ridge):
    exact = torch.linalg.solve(matrix.double() + ridge * torch.eye(len(matrix), dtype=torch.float64), y)
    return float((solution.alpha - exact).norm() / exact.norm())


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("subsample", "top"), [(40, 10), (250, 100), (250, 1000)])
def test_the_fixed_point_is_the_exact_ridge_solution(ridge, subsample, top, momentum):
    matrix, y = laplace(250), targets(250)
    solution = solve(
        matrix,
        y,
        method="eigenpro2",
        momentum=momentum,
        ridge=ridge,
        subsample=subsample,
        top=top,
        epochs=1500,
        tolerance=1e-10,
    )
    assert solution.converged
    assert relative_error(solution, matrix, y, ridge) <= 1e-8


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0, 1e6])
def test_the_diagonal_need_not_be_one(scale, momentum):
    matrix, y = laplace(200), targets(200)
    solution = solve(
        scale * matrix, y, method="eigenpro2", momentum=momentum, ridge=scale * 0.5, epochs=100, tolerance=1e-8
    )
    assert solution.converged
    assert relative_error(solution, scale * matrix, y, scale * 0.5) <= 1e-7


@pytest.mark.parametrize("momentum", [False, True])
def test_a_diagonal_of_very_different_entries_is_solved(momentum):
    scales = torch.logspace(-1, 1, 200, dtype=torch.float64)[
        torch.randperm(200, generator=torch.Generator().manual_seed(2))
    ]
    matrix, y = laplace(200) * torch.outer(scales, scales), targets(200)
    solution = solve(
        matrix, y, method="eigenpro2", momentum=momentum, ridge=1.0, subsample=50, epochs=1000, tolerance=1e-8
    )
    assert solution.converged
    assert relative_error(solution, matrix, y, 1.0) <= 1e-6


@pytest.mark.parametrize("momentum", [False, True])
def test_rows_sorted_by_class_do_not_make_it_diverge(momentum):
    matrix, y = laplace(1200, clusters=10), targets(1200)
    operator = DenseOperator(matrix, block_rows=120)
    solver = solver_of("eigenpro2", momentum=momentum, epochs=60, tolerance=1e-4, subsample=120, top=50)
    solution = solve_operator(solver, operator, y, 1.0)
    assert solution.converged
    assert relative_error(solution, matrix, y, 1.0) <= 1e-3


@pytest.mark.parametrize("momentum", [False, True])
def test_a_low_rank_matrix_without_ridge_is_solved_where_the_targets_allow_it(momentum):
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    matrix, y = factor @ factor.T, factor @ torch.ones(5, 1, dtype=torch.float64)
    solution = solve(matrix, y, method="eigenpro2", momentum=momentum, ridge=0.0, epochs=60, tolerance=1e-8)
    assert solution.converged
    assert (matrix @ solution.alpha - y).norm() <= 1e-8 * y.norm()


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("block_rows", [32, 64, 300])
def test_stored_tiles_give_the_bits_of_the_matrix_in_memory(block_rows, momentum):
    matrix, y = laplace(300), targets(300, columns=1)
    solver = solver_of("eigenpro2", momentum=momentum, epochs=5, tolerance=1e-9, subsample=80, top=20)
    stored = solve_operator(solver, BlockedOperator(ArrayTiles(matrix.numpy(), block_rows)), y, 0.1)
    dense = solve_operator(solver, DenseOperator(matrix, block_rows=block_rows), y, 0.1)
    assert torch.equal(stored.alpha, dense.alpha)


@pytest.mark.parametrize("momentum", [False, True])
def test_the_seed_decides_every_bit(momentum):
    matrix, y = laplace(200), targets(200)
    runs = [
        solve(matrix, y, method="eigenpro2", momentum=momentum, epochs=3, subsample=50, seed=seed).alpha
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_fewer_samples_than_points_and_directions_are_no_problem(size, momentum):
    matrix, y = laplace(size), targets(size)
    solution = solve(matrix, y, method="eigenpro2", momentum=momentum, ridge=0.5, epochs=200, tolerance=1e-9)
    assert solution.converged
    assert relative_error(solution, matrix, y, 0.5) <= 1e-8


@pytest.mark.parametrize("momentum", [False, True])
def test_the_golden_kernel_gives_the_golden_coefficients(momentum):
    matrix, y = torch.tensor(TRNTK0), torch.tensor([-1.0, 1.0, 1.0, -1.0])
    solution = solve(matrix, y, method="eigenpro2", momentum=momentum, ridge=1.0, epochs=500, tolerance=1e-10)
    torch.testing.assert_close(solution.alpha[:, 0], torch.tensor(KRR_ALPHA).double(), rtol=0, atol=5e-8)


@pytest.mark.parametrize("momentum", [False, True])
def test_too_few_epochs_are_reported_with_the_true_residual(momentum):
    matrix, y = laplace(200), targets(200)
    solution = solve(matrix, y, method="eigenpro2", momentum=momentum, ridge=1e-3, epochs=1)
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


@pytest.mark.parametrize("momentum", [False, True])
def test_a_negative_eigenvalue_that_the_subsample_misses_never_gives_worse_than_zero(momentum):
    matrix = laplace(300)
    vector = targets(300, columns=1)
    vector /= vector.norm()
    matrix -= 3 * vector @ vector.T
    solution = solve(
        matrix, targets(300), method="eigenpro2", momentum=momentum, ridge=0.0, subsample=10, top=5, epochs=200
    )
    assert solution.status in ("budget", "diverged", "indefinite")
    assert float(solution.residuals.max()) <= 1.0


@pytest.mark.parametrize("momentum", [False, True])
def test_a_step_that_is_too_long_is_undone_and_halved(momentum):
    y = targets(200)
    system = make_system(DenseOperator(laplace(200)), y, 0.1)
    solver = solver_of("eigenpro2", momentum=momentum, epochs=200, tolerance=1e-6, subsample=50)
    state = dataclasses.replace(solver.init(system), step_scale=16.0)
    while state.status is None:
        state = solver.step(system, state)
    assert state.status == "converged"
    assert state.step_scale < 4
    assert relative_error(type("Found", (), {"alpha": state.alpha_NT}), laplace(200), y, 0.1) <= 1e-5


@pytest.mark.parametrize("momentum", [False, True])
def test_float32_matrices_reach_tolerances_below_float32_when_asked_to(momentum):
    matrix, y = laplace(200, dtype=torch.float32), targets(200)
    solution = solve(matrix, y, method="eigenpro2", momentum=momentum, ridge=1.0, epochs=200, tolerance=1e-9)
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


def test_momentum_in_a_window_is_that_of_batches_that_update_all_coefficients():
    matrix, y, ridge = laplace(120), targets(120), 0.3
    points, rows = torch.arange(0, 120, 4), torch.arange(30, 60)
    eigenvalues, vectors = torch.linalg.eigh(matrix[points][:, points])
    directions, damping = vectors[:, -5:], 0.9 / eigenvalues[-5:].unsqueeze(1)
    nugget = matrix + ridge * torch.eye(120, dtype=torch.float64)
    met, velocity = targets(120, seed=8), 0.1 * targets(120, seed=9)
    features, pace = matrix[rows][:, points] @ directions, Pace(120, 0.35, 4)
    responses = nugget[rows][:, points] @ directions
    batches = torch.randperm(30, generator=torch.Generator().manual_seed(1)).chunk(4)
    window = Window(nugget[rows][:, rows], features, responses, nugget[rows] @ met, y[rows], damping)
    motion = Motion(pace, nugget[rows] @ velocity, 5)
    found = descend(window, batches, 1.0, np.random.default_rng(0), motion)
    moved, pushed = met + motion.travelled * velocity, motion.kept * velocity
    moved[rows] += found.changes_MT
    moved[points] += directions @ found.back_QT
    pushed[rows] += motion.changes_MT
    pushed[points] += directions @ motion.back_QT

    random = np.random.default_rng(0)
    for batch in batches:
        at = rows[batch]
        part = features[batch]
        block = nugget[at][:, at] - part @ (damping * part.T)
        vector = torch.from_numpy(random.standard_normal((len(batch), 1)))
        for _ in range(8):
            vector = block @ (vector / vector.norm())
        rate = 1.5 / float(vector.norm())
        gamma, push = pace.weights(rate, len(batch))
        step = torch.zeros_like(met)
        step[at] += nugget[at] @ met - y[at]
        step[points] -= directions @ (damping * (part.T @ step[at]))
        velocity = gamma * velocity - push * step
        met = met + velocity - rate * step
    torch.testing.assert_close(moved, met, rtol=0, atol=1e-10)
    torch.testing.assert_close(pushed, velocity, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("size", "num_rows", "largest", "smallest"), [(1000, 50, 3.0, 0.01), (300, 1, 1.0, 1e-4)])
def test_weights_are_the_published_ones_for_the_published_step(size, num_rows, largest, smallest):
    found_gamma, found_push = Pace(size, smallest / PACE, 10**9).weights(1 / largest, num_rows)
    statistical = size / num_rows + (num_rows - 1) / num_rows
    time = (statistical * statistical * largest / smallest) ** 0.5
    gamma, eta_1 = (time - 1) / (time + 1), 1 / largest
    eta_2 = eta_1 * time / (time + 1) * (1 - 1 / statistical)
    assert found_gamma == pytest.approx(gamma, rel=1e-9)
    assert found_push == pytest.approx(gamma * eta_1 - eta_2, rel=1e-6)


@given(
    rate=st.floats(1e-6, 1e6), convexity=st.floats(0, 1e6), epochs=st.integers(0, 10**6), num_rows=st.integers(1, 500)
)
def test_momentum_neither_grows_by_itself_nor_pushes_backwards(rate, convexity, epochs, num_rows):
    gamma, push = Pace(500, convexity, epochs).weights(rate, num_rows)
    assert 0 <= gamma < 1
    assert push >= 0
    if epochs == 0 or PACE * rate * convexity >= 1:
        assert push == 0


@pytest.mark.parametrize("block_rows", [150, 600])
def test_momentum_takes_fewer_epochs(block_rows):
    system = make_system(DenseOperator(laplace(600), block_rows=block_rows), targets(600), 1e-3)
    steps = []
    for momentum in (False, True):
        solver = solver_of("eigenpro2", momentum=momentum, epochs=200, tolerance=1e-5, subsample=150, top=30)
        state = solver.init(system)
        while state.status is None:
            state = solver.step(system, state)
        assert state.status == "converged"
        steps.append(state.steps)
    assert steps[1] <= 0.8 * steps[0]


@pytest.mark.parametrize(("last_residual", "rests"), [(1e-9, True), (1e9, False)])
def test_momentum_starts_anew_when_residuals_grow(last_residual, rests):
    system = make_system(DenseOperator(laplace(200)), targets(200), 0.01)
    solver = solver_of("eigenpro2", epochs=50, tolerance=1e-9, subsample=50)
    state = solver.step(system, solver.step(system, solver.init(system)))
    state = solver.step(system, dataclasses.replace(state, last_residual=last_residual))
    assert state.glided == (0 if rests else 3)
    assert bool(state.velocity_NT.any()) is not rests
    assert torch.equal(state.moving_NT, state.alpha_NT) is rests


def test_an_epoch_that_is_undone_leaves_no_velocity():
    system = make_system(DenseOperator(laplace(200)), targets(200), 0.01)
    solver = solver_of("eigenpro2", epochs=50, tolerance=1e-9, subsample=50)
    state = solver.step(system, solver.step(system, solver.init(system)))
    before = state.best_NT
    state = solver.step(system, dataclasses.replace(state, velocity_NT=1e6 * state.velocity_NT))
    assert state.step_scale == 0.5
    assert not state.velocity_NT.any()
    assert torch.equal(state.alpha_NT, before)
    assert torch.equal(state.moving_NT, before)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("dies_after", [1, 4, 10])
def test_a_solve_that_is_killed_within_an_epoch_ends_with_the_same_bits(momentum, dies_after):
    operator, y = DenseOperator(laplace(200), block_rows=60), targets(200)
    solver = solver_of("eigenpro2", momentum=momentum, epochs=5, tolerance=1e-9, subsample=50, top=10)
    whole = solve_operator(solver, operator, y, 0.1)
    checkpoint = MemoryCheckpoint(dies_after)
    with pytest.raises(Killed):
        solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
    checkpoint.dies_after = None
    resumed = solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
    assert torch.equal(resumed.alpha, whole.alpha)


@pytest.mark.parametrize("momentum", [False, True])
def test_duplicate_rows_without_ridge_are_solved_where_the_targets_allow_it(momentum):
    matrix, y = laplace(100).repeat(2, 2), targets(100).repeat(2, 1)
    solution = solve(
        matrix, y, method="eigenpro2", momentum=momentum, ridge=0.0, subsample=60, epochs=500, tolerance=1e-6
    )
    assert solution.converged


@pytest.mark.parametrize(("ridge", "moves"), [(0.0, False), (0.1, True)])
def test_a_singular_matrix_without_ridge_has_no_momentum(ridge, moves):
    system = make_system(DenseOperator(laplace(100).repeat(2, 2)), targets(200), ridge)
    state = solver_of("eigenpro2", momentum=True, subsample=200).init(system)
    assert state.status is None
    assert (state.velocity_NT is not None) is moves


@pytest.mark.parametrize("ridge", [0.0, 0.01, 10.0])
def test_the_smallest_eigenvalue_is_found_from_above(ridge):
    matrix = laplace(200)
    shifted = torch.linalg.eigvalsh(matrix) + ridge
    found = smallest_eigenvalue(matrix, ridge, float(shifted[-1]), np.random.default_rng(0))
    assert float(shifted[0]) * (1 - 1e-9) <= found <= 1.5 * float(shifted[0])


def test_the_smallest_eigenvalue_of_an_indefinite_matrix_counts_as_zero():
    matrix = laplace(100) - 0.5 * torch.eye(100, dtype=torch.float64)
    assert smallest_eigenvalue(matrix, 0.0, 1.0, np.random.default_rng(0)) == 0.0
    assert 0 < smallest_eigenvalue(matrix, 0.6, 1.0, np.random.default_rng(0)) < 0.3


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


@pytest.mark.parametrize("momentum", [False, True])
def test_coefficients_change_at_the_end_of_an_epoch_and_every_block_can_be_stored(momentum):
    system = make_system(DenseOperator(laplace(100), block_rows=30), targets(100), 0.1)
    solver = solver_of("eigenpro2", momentum=momentum, epochs=3, tolerance=1e-12, subsample=40, top=10)
    state = solver.init(system)
    for epoch in (0, 1):
        before_NT = state.alpha_NT
        for blocks_done in (1, 2, 3):
            state = solver.step(system, state)
            assert (state.steps, state.blocks_done) == (epoch, blocks_done)
            assert torch.equal(state.alpha_NT, before_NT)
            assert state.moving_NT.any()
        state = solver.step(system, state)
        assert (state.steps, state.blocks_done) == (epoch + 1, 0)
    ahead = state.velocity_NT if momentum else torch.zeros_like(state.alpha_NT)
    assert torch.equal(state.alpha_NT, state.moving_NT - ahead)
    assert bool(ahead.any()) is momentum  # which grows from nothing in the first epoch
