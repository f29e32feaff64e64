"""Logistic regression on a kernel, against scikit-learn on explicit features and against finite differences."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from array_tiles import ArrayTiles
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from solving import Killed, MemoryCheckpoint, laplace, rbf, solver_of, targets

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.glm.losses import LOSSES
from ntkpipe.workers.solvers.glm.newton import step_length
from ntkpipe.workers.solvers.glm.objective import Objective
from ntkpipe.workers.solvers.solve import one_hot_targets, solve, solve_operator
from ntkpipe.workers.solvers.system import make_system
from ntkpipe.workers.solvers.validation import Validation

RIDGE = 0.3
PENALTIES = ("rkhs", "coefficients")


def problem(size=90, classes=3, *, seed=0):
    """A kernel, and labels that it explains only in part."""
    matrix = laplace(size, seed=seed)
    smooth = torch.linalg.cholesky(matrix) @ targets(size, columns=classes, seed=seed + 1)
    return matrix, (2 * smooth + targets(size, columns=classes, seed=seed + 2)).argmax(dim=1)


def fit(matrix, y, **options):
    return solve(matrix, y, **{"method": "logistic", "ridge": RIDGE, "tolerance": 1e-10} | options)


def oracle(matrix, labels, ridge, penalty, *, weights_N=None):
    """Logits of scikit-learn on features whose Gram matrix is the kernel, or on its rows."""
    features = torch.linalg.cholesky(matrix) if penalty == "rkhs" else matrix
    model = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-11, max_iter=5000, solver="newton-cg")
    weights = None if weights_N is None else weights_N.numpy()
    logits = model.fit(features.numpy(), labels.numpy(), sample_weight=weights).decision_function(features.numpy())
    return torch.from_numpy(logits).reshape(len(labels), -1)


def objective_of(matrix, y, alpha, ridge, loss, penalty, weights_N=None):
    logits = matrix @ alpha
    if loss == "softmax":
        losses = torch.logsumexp(logits, dim=1) - (y * logits).sum(dim=1)
    else:
        losses = (torch.log1p(torch.exp(logits)) - y * logits).sum(dim=1)
    norm = (alpha * (logits if penalty == "rkhs" else alpha)).sum()
    return (losses if weights_N is None else weights_N * losses).sum() + ridge / 2 * norm


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("ridge", [10.0, 0.3, 0.01])
def test_several_classes_agree_with_scikit_learn(penalty, ridge):
    matrix, labels = problem()
    solution = fit(matrix, one_hot_targets(labels), ridge=ridge, penalty=penalty)
    assert solution.converged
    assert (solution.method, solution.certificate.equation) == ("logistic", "logistic")
    torch.testing.assert_close(solution.fitted, oracle(matrix, labels, ridge, penalty), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(solution.fitted, matrix @ solution.alpha)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_two_classes_agree_with_scikit_learn(penalty):
    matrix, labels = problem(classes=2)
    solution = fit(matrix, labels, loss="sigmoid", penalty=penalty)
    assert solution.alpha.shape == (90, 1)
    torch.testing.assert_close(solution.fitted, oracle(matrix, labels, RIDGE, penalty), rtol=1e-5, atol=1e-5)


def test_two_columns_of_a_softmax_are_one_of_a_sigmoid_with_twice_the_ridge():
    matrix, labels = problem(classes=2)
    softmax = fit(matrix, one_hot_targets(labels), ridge=2 * RIDGE)
    sigmoid = fit(matrix, labels, loss="sigmoid")
    difference = softmax.fitted[:, 1:] - softmax.fitted[:, :1]
    torch.testing.assert_close(difference, sigmoid.fitted, rtol=0, atol=1e-7)


def test_every_label_of_a_sample_is_a_problem_of_its_own():
    matrix, labels = problem(classes=4)
    several = torch.stack([labels >= 2, labels % 2 == 0, labels == 3], dim=1)
    together = fit(matrix.numpy(), several.numpy(), loss="sigmoid")
    for column in range(3):
        alone = oracle(matrix, several[:, column].long(), RIDGE, "rkhs")
        torch.testing.assert_close(together.fitted[:, column : column + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss, penalty):
    matrix, labels = problem(size=12)
    y, alpha = one_hot_targets(labels, 3), targets(12, seed=7)
    weights_N = torch.rand(12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    objective = Objective(
        DenseOperator(matrix), y, weights_N.unsqueeze(1), RIDGE, LOSSES[loss], penalty == "rkhs", torch.float64
    )
    logits = matrix @ alpha
    arguments = RIDGE, loss, penalty, weights_N
    assert float(objective.value(alpha, logits).sum()) == pytest.approx(
        float(objective_of(matrix, y, alpha, *arguments)), rel=1e-12
    )
    gradient = objective.metric(objective.gradient(alpha, logits))
    vectors = targets(12, seed=8)
    curved = objective.metric(
        objective.curvature(LOSSES[loss].probabilities(logits), vectors, objective.metric(vectors))
    )
    step = 1e-5
    for row, column in [(0, 0), (5, 2), (11, 1)]:
        moved = torch.zeros_like(alpha)
        moved[row, column] = step
        above, below = (objective_of(matrix, y, alpha + sign * moved, *arguments) for sign in (1, -1))
        assert float(gradient[row, column]) == pytest.approx(float(above - below) / (2 * step), rel=1e-6, abs=1e-8)
    above, below = (
        objective.metric(objective.gradient(alpha + sign * step * vectors, logits + sign * step * matrix @ vectors))
        for sign in (1, -1)
    )
    torch.testing.assert_close(curved, (above - below) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_residuals_are_recomputed_norms_of_the_gradient(penalty):
    matrix, labels = problem()
    y = one_hot_targets(labels)
    solution = fit(matrix, y, penalty=penalty, tolerance=1e-2)

    def norms(alpha):
        errors = torch.softmax(matrix @ alpha, dim=1) - y
        gradient = (errors if penalty == "rkhs" else matrix @ errors) + RIDGE * alpha
        return (gradient * (matrix @ gradient if penalty == "rkhs" else gradient)).sum(dim=0).sqrt()

    expected = norms(solution.alpha) / norms(torch.zeros_like(y))
    torch.testing.assert_close(solution.residuals, expected, rtol=1e-9, atol=1e-15)
    assert float(solution.residuals.max()) <= 1e-2
    assert not len(solution.certificate.backward_errors)


def test_the_gradient_bounds_the_distance_from_the_solution():
    matrix, labels = problem()
    y = one_hot_targets(labels)
    rough, fine = (fit(matrix, y, tolerance=tolerance) for tolerance in (0.05, 1e-11))
    difference = rough.alpha - fine.alpha
    zero = 1 / 3 - y
    scales = (zero * (matrix @ zero)).sum(dim=0).sqrt()
    distance = float((difference * (matrix @ difference)).sum().sqrt())
    assert 0 < distance <= float((rough.residuals * scales).norm()) / RIDGE


@pytest.mark.parametrize("penalty", PENALTIES)
def test_weights_are_those_of_scikit_learn(penalty):
    matrix, labels = problem()
    weights_N = torch.rand(90, generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 3
    weights_N[[2, 40]] = 0.0
    solution = fit(matrix, one_hot_targets(labels), penalty=penalty, sample_weights=weights_N)
    expected = oracle(matrix, labels, RIDGE, penalty, weights_N=weights_N)
    torch.testing.assert_close(solution.fitted, expected, rtol=1e-5, atol=1e-5)


def test_a_weight_of_zero_is_a_sample_that_is_not_there():
    matrix, labels = problem()
    y, kept = one_hot_targets(labels, 3), torch.arange(90) % 4 > 0
    weighted = fit(matrix, y, sample_weights=kept.double())
    without = fit(matrix[kept][:, kept], y[kept])
    torch.testing.assert_close(weighted.fitted, matrix[:, kept] @ without.alpha, rtol=0, atol=1e-8)


def test_a_start_from_the_solution_is_over_at_once_and_any_start_leads_there():
    matrix, labels = problem()
    y = one_hot_targets(labels)
    cold = fit(matrix, y)
    warm = fit(matrix, y, warm_start=cold.alpha)
    assert (warm.status, warm.certificate.steps) == ("converged", 0)
    assert torch.equal(warm.alpha, cold.alpha)
    for scale in (0.1, 100.0):
        other = fit(matrix, y, warm_start=scale * targets(90, seed=3))
        assert other.converged
        torch.testing.assert_close(other.fitted, cold.fitted, rtol=0, atol=1e-7)


def test_a_start_that_is_worse_than_zero_is_not_used():
    matrix, labels = problem()
    y = one_hot_targets(labels)
    system = replace(make_system(DenseOperator(matrix), y, RIDGE), start_NT=1e6 * targets(90, seed=3))
    assert not solver_of("logistic").init(system).alpha_NT.any()


def test_logits_that_have_drifted_convince_nobody():
    matrix, labels = problem()
    solver, system = (
        solver_of("logistic", tolerance=1e-6),
        make_system(DenseOperator(matrix), one_hot_targets(labels), RIDGE),
    )
    state = solver.init(system)
    while state.status is None:
        state = solver.step(system, state)
    drifted = state.logits_NT + 0.1 * targets(90, seed=6)
    gradient = torch.softmax(drifted, dim=1) - system.rhs_NT + RIDGE * state.alpha_NT
    state = replace(state, status=None, logits_NT=drifted, gradient_NT=gradient, image_NT=matrix @ gradient)
    while state.status is None:
        state = solver.step(system, state)
    assert state.status == "converged"
    assert float(solver.certify(system, state).residuals_T.max()) <= 1e-6


def test_rounding_ends_a_solve_long_before_its_budget():
    matrix, labels = problem()
    solution = fit(matrix, one_hot_targets(labels), tolerance=1e-300, steps=1000)
    assert solution.status == "stagnated"
    assert solution.certificate.steps < 50
    assert float(solution.residuals.max()) < 1e-12


def test_a_kernel_of_low_rank_with_duplicates_is_solved():
    features = targets(80, columns=6, seed=1)
    features[40:] = features[:40]
    labels = (features @ targets(6, seed=2) + 0.5 * targets(80, seed=4)).argmax(dim=1)
    for kernel in (features, features @ features.T):
        solution = fit(kernel, one_hot_targets(labels, 3))
        assert solution.converged
        model = LogisticRegression(C=1 / RIDGE, fit_intercept=False, tol=1e-10, solver="newton-cg")
        expected = model.fit(features.numpy(), labels.numpy()).decision_function(features.numpy())
        torch.testing.assert_close(solution.fitted, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


def test_classes_that_are_far_apart_do_not_overflow():
    matrix, labels = problem()
    solution = fit(1e4 * matrix, one_hot_targets(labels), ridge=1e-3, tolerance=1e-6)
    assert solution.converged
    assert torch.isfinite(solution.alpha).all()


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_a_kernel_of_any_unit_is_solved_equally_well(unit):
    matrix, labels = problem()
    y = one_hot_targets(labels)
    solution = fit(unit * matrix, y, ridge=unit * RIDGE)
    assert solution.converged
    torch.testing.assert_close(solution.fitted, fit(matrix, y).fitted, rtol=0, atol=1e-7)


def test_stored_single_precision_tiles_are_solved_like_the_matrix():
    matrix, labels = problem()
    y = one_hot_targets(labels)
    operator = BlockedOperator(ArrayTiles(matrix.float().numpy(), 32))
    for tolerance in (1e-4, 1e-9):
        solution = fit(operator, y, tolerance=tolerance)
        assert solution.converged
        torch.testing.assert_close(solution.fitted, fit(matrix.float(), y).fitted, rtol=0, atol=max(1e-7, tolerance))


def test_an_indefinite_matrix_never_passes_in_silence():
    matrix, labels = rbf(60) - 0.9 * torch.eye(60, dtype=torch.float64), torch.arange(60) % 3
    solution = fit(matrix, one_hot_targets(labels))
    assert solution.status == "indefinite"
    assert float(solution.residuals.max()) > 1e-3
    assert torch.isfinite(solution.alpha).all()


def test_a_matrix_of_zeros_has_coefficients_that_no_one_can_improve():
    solution = fit(torch.zeros(4, 4), one_hot_targets(torch.tensor([0, 1, 0, 1])))
    assert solution.converged
    assert not solution.fitted.any()


@pytest.mark.parametrize(
    ("options", "status"),
    [({"steps": 2}, "budget"), ({"inner_steps": 1, "steps": 3}, "budget"), ({"tolerance": 1e-300}, None)],
)
def test_a_solve_that_did_not_get_there_says_so_and_ends(options, status):
    matrix, labels = problem()
    solution = fit(matrix, one_hot_targets(labels), **options)
    assert not solution.converged
    assert solution.status == status or (status is None and solution.status in {"stagnated", "budget"})
    assert solution.certificate.flags == (solution.status,)


def test_few_inner_steps_only_take_longer():
    matrix, labels = problem()
    y = one_hot_targets(labels)
    solution = fit(matrix, y, inner_steps=2, steps=1000)
    assert solution.converged
    torch.testing.assert_close(solution.fitted, fit(matrix, y).fitted, rtol=0, atol=1e-7)


def test_a_line_search_along_a_direction_of_ascent_ends_with_nothing():
    matrix, labels = problem(size=20)
    y = one_hot_targets(labels, 3)
    objective = Objective(DenseOperator(matrix), y, torch.ones(20, 1), RIDGE, LOSSES["softmax"], True, torch.float64)
    zeros, gradient = torch.zeros_like(y), objective.gradient(torch.zeros_like(y), torch.zeros_like(y))
    image = matrix @ gradient
    slope = objective.sums(gradient * image)
    assert not step_length(objective, zeros, zeros, slope, gradient, image).any()
    assert step_length(objective, zeros, zeros, -slope, -gradient, -image).all()


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (torch.arange(5) % 2, {}, "needs a column per class.*sigmoid"),
        (torch.ones(5, 2), {}, "sums from 2 to 2"),
        (torch.tensor([[1.5, -0.5]]).repeat(5, 1), {}, "at least 0"),
        (torch.tensor([-1.0, 1, 1, 1, 1]), {"loss": "sigmoid"}, "found -1 to 1"),
        (torch.eye(5), {"ridge": 0.0}, "positive ridge"),
        (torch.eye(5), {"penalty": "l1"}, "penalty"),
        (torch.eye(5), {"warm_start": torch.zeros(5, 4)}, "warm_start has shape"),
        (torch.eye(5), {"sample_weights": torch.zeros(5)}, "not all of them 0"),
    ],
)
def test_what_logistic_regression_cannot_do_is_refused(y, options, message):
    with pytest.raises(ConfigError, match=message):
        fit(rbf(5), y, **options)


def test_early_stopping_returns_the_step_that_did_best():
    matrix, labels = problem(150)
    held_out = torch.arange(150) % 3 == 0
    y, between = one_hot_targets(labels), matrix[held_out][:, ~held_out]
    validation = Validation(between, y[held_out], patience=1)
    seen = []
    solution = solve_operator(
        solver_of("logistic", tolerance=1e-10),
        DenseOperator(matrix[~held_out][:, ~held_out]),
        y[~held_out],
        1e-3,
        validation=validation,
        observe=lambda position: seen.append(position.best_loss),
    )
    wrong = (between @ solution.alpha).argmax(dim=1) != labels[held_out]
    assert solution.status in {"stopped-early", "converged"}
    assert float(wrong.double().mean()) == pytest.approx(min(seen))


def test_the_same_call_gives_the_same_bits_and_so_does_a_killed_one():
    matrix, labels = problem()
    y, weights_N = one_hot_targets(labels), torch.linspace(0, 2, 90, dtype=torch.float64)
    operator = BlockedOperator(ArrayTiles(matrix.numpy(), 32))

    def run(checkpoint):
        solver = solver_of("logistic", tolerance=1e-10)
        return solve_operator(
            solver, operator, y, RIDGE, weights_N=weights_N, checkpoint=checkpoint, checkpoint_seconds=0.0
        )

    whole = run(None)
    assert torch.equal(run(None).alpha, whole.alpha)
    for dies_after in range(1, whole.certificate.steps + 1):
        checkpoint = MemoryCheckpoint(dies_after)
        with pytest.raises(Killed):
            run(checkpoint)
        checkpoint.dies_after = None
        resumed = run(checkpoint)
        assert torch.equal(resumed.alpha, whole.alpha)
        assert resumed.certificate.steps == whole.certificate.steps
        assert resumed.certificate.passes == pytest.approx(whole.certificate.passes)


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 20),
    classes=st.integers(2, 4),
    seed=st.integers(0, 2**16),
    exponent=st.integers(-4, 4),
    loss=st.sampled_from(sorted(LOSSES)),
    penalty=st.sampled_from(PENALTIES),
)
def test_any_problem_is_solved(size, classes, seed, exponent, loss, penalty):
    matrix = rbf(size, seed=seed)
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, classes, size))
    y, ridge = one_hot_targets(labels, classes), 10.0**exponent
    solution = fit(matrix, y, ridge=ridge, loss=loss, penalty=penalty, tolerance=1e-8)
    assert solution.converged
    best = objective_of(matrix, y, solution.alpha, ridge, loss, penalty)
    for moved in (targets(size, columns=classes, seed=seed), solution.alpha):
        for step in (1e-3, -1e-3):
            assert objective_of(matrix, y, solution.alpha + step * moved, ridge, loss, penalty) >= best - 1e-9 * (
                1 + best
            )
    assert not math.isnan(float(best))
