"""Weights, warm starts, early stopping and kinds of targets, for every solver of ridge systems."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from array_tiles import ArrayTiles
from solving import Killed, MemoryCheckpoint, exact, laplace, rbf, solver_of, targets
from unit.test_solve import SOLVERS

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.configs.solve.union import SECTIONS
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.base import AbstractSolver, SolverState
from ntkpipe.workers.solvers.certificate import ridge_evidence
from ntkpipe.workers.solvers.scaling import Scaling
from ntkpipe.workers.solvers.solve import one_hot_targets, solve, solve_operator
from ntkpipe.workers.solvers.validation import Validation

RIDGE = 0.5


@pytest.fixture(params=SOLVERS)
def solver(request):
    options, tolerance = SOLVERS[request.param]
    return {"method": request.param, **options}, tolerance


def assert_near(found, expected, tolerance):
    scale_T = expected.norm(dim=0)
    assert float(((found - expected).norm(dim=0) / scale_T.where(scale_T > 0, 1.0)).max()) <= tolerance


def weights(size, *, zeros=()):
    weights_N = torch.randint(1, 4, (size,), generator=torch.Generator().manual_seed(9)).double()
    weights_N[list(zeros)] = 0.0
    return weights_N


def weighted(matrix, y, ridge, weights_N):
    """(K + ridge W^-1)^-1 y without the samples of weight 0."""
    kept = weights_N > 0
    alpha = torch.zeros_like(y)
    system = matrix[kept][:, kept] + ridge * torch.diag(1 / weights_N[kept])
    alpha[kept] = torch.linalg.solve(system, y[kept])
    return alpha


@dataclass(frozen=True, kw_only=True)
class ScriptState(SolverState):
    """Where a script is."""


class Script(AbstractSolver):
    """Plays coefficients in a row, and ends with a status."""

    method, equation, state_type = "script", "ridge", ScriptState

    def __init__(self, played, status="converged"):
        self.played, self.status = played, status

    def init(self, system):
        return ScriptState(alpha_NT=torch.zeros_like(system.rhs_NT), status=None)

    def step(self, system, state):
        steps = state.steps + 1
        status = self.status if steps == len(self.played) else None
        return replace(state, alpha_NT=self.played[state.steps], status=status, steps=steps)

    def extras(self, state):
        return {}

    def certify(self, system, state):
        return ridge_evidence(system, state.alpha_NT)


# Weights


def test_weights_are_a_ridge_of_their_own_for_every_sample(solver):
    options, tolerance = solver
    matrix, y, weights_N = rbf(80), targets(80), weights(80)
    solution = solve(matrix, y, ridge=RIDGE, sample_weights=weights_N, **options)
    assert solution.converged
    assert_near(solution.alpha, weighted(matrix, y, RIDGE, weights_N), 10 * tolerance)
    assert_near(solution.fitted, matrix @ solution.alpha, 1e-12)


def test_a_weight_of_two_is_a_sample_that_is_there_twice(solver):
    options, tolerance = solver
    matrix, y, weights_N = laplace(40), targets(40), weights(40)
    copies = torch.repeat_interleave(torch.arange(40), weights_N.long())
    repeated = solve(matrix[copies][:, copies], y[copies], ridge=RIDGE, ridge_scale="mean-diagonal", **options)
    once = solve(matrix, y, ridge=RIDGE, ridge_scale="mean-diagonal", sample_weights=weights_N, **options)
    assert once.ridge == pytest.approx(repeated.ridge, rel=1e-12)
    summed = torch.zeros_like(y).index_add_(0, copies, repeated.alpha)
    assert_near(once.alpha, summed, 20 * tolerance)


def test_a_weight_of_zero_is_a_sample_that_is_not_there(solver):
    options, tolerance = solver
    matrix, y, zeros = laplace(60), targets(60), [0, 17, 59]
    weights_N = torch.ones(60)
    weights_N[zeros] = 0.0
    y[17] = 1e30
    solution = solve(matrix, y, ridge=RIDGE, sample_weights=weights_N, **options)
    kept = weights_N > 0
    assert solution.converged
    assert not solution.alpha[zeros].any()
    assert_near(solution.alpha[kept], exact(matrix[kept][:, kept], y[kept], RIDGE), 10 * tolerance)
    assert_near(solution.fitted, matrix @ solution.alpha, 1e-12)


def test_samples_of_weight_zero_do_not_count_in_the_mean_diagonal():
    matrix = torch.diag(torch.tensor([1.0, 3.0, 100.0]))
    solution = solve(
        matrix, torch.ones(3), ridge=0.5, ridge_scale="mean-diagonal", sample_weights=torch.tensor([1, 3, 0])
    )
    assert solution.ridge == pytest.approx(0.5 * 2.5)


def test_weights_of_any_unit_are_solved_equally_well(solver):
    options, tolerance = solver
    matrix, y, weights_N = rbf(50), targets(50), weights(50)
    for unit in (1e-8, 1e8):
        solution = solve(matrix, y, ridge=RIDGE * unit, sample_weights=unit * weights_N, **options)
        assert solution.converged
        assert_near(solution.alpha, weighted(matrix, y, RIDGE, weights_N), 10 * tolerance)


def test_a_solver_sees_entries_of_about_one_whatever_the_weights_are():
    y, weights_N = 1e9 * targets(50), 1e-8 * weights(50, zeros=[7])
    y[7] = 1e200
    system = Scaling.of(DenseOperator(rbf(50)), y, RIDGE, weights_N=weights_N).system
    largest_T = system.rhs_NT.abs().amax(dim=0)
    assert bool(((largest_T >= 0.5) & (largest_T < 1)).all())
    torch.testing.assert_close(system.norms_T, system.rhs_NT.norm(dim=0))


def test_weighted_features_are_still_features():
    features, y, weights_N = targets(50, columns=7, seed=3), targets(50), weights(50, zeros=[4])
    scaling = Scaling.of(FeatureOperator(features), y, RIDGE, weights_N=weights_N)
    rectangle = scaling.system.operator.tags.features
    assert rectangle.shape == (50, 7)
    dense = torch.cat([block for _, block in rectangle.blocks()])
    torch.testing.assert_close(dense @ dense.T, scaling.system.operator.dense(), rtol=1e-12, atol=1e-12)


def test_weights_need_no_second_copy_of_stored_tiles(solver):
    options, tolerance = solver
    matrix, y, weights_N = rbf(70), targets(70), weights(70, zeros=[3])
    operator = BlockedOperator(ArrayTiles(matrix.numpy(), 16))
    solution = solve(operator, y.numpy(), ridge=RIDGE, sample_weights=weights_N.numpy(), **options)
    assert_near(solution.alpha, weighted(matrix, y, RIDGE, weights_N), 10 * tolerance)


@pytest.mark.parametrize(
    ("weights_N", "message"),
    [
        (torch.ones(4), r"shape \(5,\), found \(4,\)"),
        (torch.ones(5, 1), r"found \(5, 1\)"),
        (torch.empty(0), r"found \(0,\)"),
        (torch.zeros(5), "not all of them 0; found 0 to 0"),
        (torch.tensor([1.0, 1, -2, 1, 1]), "found -2 to 1"),
        (torch.tensor([1.0, 1, math.nan, 1, 1]), "finite"),
        (torch.tensor([1.0, 1, math.inf, 1, 1]), "finite"),
        ([1.0] * 5, "found list"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights_N, message):
    for scale in ("absolute", "mean-diagonal"):
        with pytest.raises(ConfigError, match=message):
            solve(rbf(5), torch.ones(5), ridge_scale=scale, sample_weights=weights_N)


# Warm starts


def test_a_start_from_the_solution_is_over_at_once(solver):
    options, tolerance = solver
    matrix, y = rbf(80), targets(80)
    expected = exact(matrix, y, RIDGE)
    cold = solve(matrix, y, ridge=RIDGE, **options)
    warm = solve(matrix, y, ridge=RIDGE, warm_start=expected, **options)
    assert warm.converged
    assert warm.certificate.steps <= min(cold.certificate.steps, 2)
    assert_near(warm.alpha, expected, tolerance)
    assert_near(warm.fitted, matrix @ expected, 10 * tolerance)


@pytest.mark.parametrize("size_of_start", [0.0, 1e-3, 1.0, 1e12])
def test_any_start_leads_to_the_same_solution(solver, size_of_start):
    options, tolerance = solver
    matrix, y = rbf(60), targets(60)
    start = size_of_start * targets(60, seed=11)
    solution = solve(matrix, y, ridge=RIDGE, warm_start=start, **options)
    assert solution.converged
    assert_near(solution.alpha, exact(matrix, y, RIDGE), 10 * tolerance)
    assert_near(matrix @ solution.alpha + RIDGE * solution.alpha, y, 10 * tolerance)


def test_a_start_in_any_unit_is_solved_equally_well(solver):
    options, tolerance = solver
    matrix, y = rbf(60), targets(60)
    units_T = torch.tensor([1e-6, 1e6, 1e-150], dtype=torch.float64)
    start = 0.99 * exact(matrix, y * units_T, RIDGE)
    solution = solve(matrix, y * units_T, ridge=RIDGE, warm_start=start, **options)
    assert solution.converged
    assert_near(solution.alpha / units_T, exact(matrix, y, RIDGE), tolerance)


def test_a_start_goes_with_weights(solver):
    options, tolerance = solver
    matrix, y, weights_N = rbf(60), targets(60), weights(60, zeros=[5, 6])
    expected = weighted(matrix, y, RIDGE, weights_N)
    warm = solve(matrix, y, ridge=RIDGE, sample_weights=weights_N, warm_start=expected, **options)
    assert warm.certificate.steps <= 2
    assert_near(warm.alpha, expected, tolerance)
    near = solve(matrix, y, ridge=RIDGE, sample_weights=weights_N, warm_start=0.5 * expected, **options)
    assert near.converged
    assert_near(near.alpha, expected, 10 * tolerance)
    assert_near(near.fitted, matrix @ near.alpha, 1e-11)


def test_residuals_of_a_warm_start_are_relative_to_the_targets():
    matrix, y = laplace(60), targets(60)
    expected = exact(matrix, y, RIDGE)
    start = expected + 1e-5 * targets(60, seed=3)
    solution = solve_operator(Script([torch.zeros_like(y)]), DenseOperator(matrix), y, RIDGE, start_NT=start)
    errors_NT = y - matrix @ start - RIDGE * start
    torch.testing.assert_close(solution.residuals, errors_NT.norm(dim=0) / y.norm(dim=0), rtol=1e-6, atol=0)
    assert torch.equal(solution.alpha, start)
    torch.testing.assert_close(solution.fitted, matrix @ start)


def test_a_start_that_is_worse_than_zero_is_not_used_for_that_target():
    matrix, y = laplace(30), targets(30, columns=2)
    start = exact(matrix, y, RIDGE)
    start[:, 1] *= -1
    scaling = Scaling.of(DenseOperator(matrix), y, RIDGE, start_NT=start)
    torch.testing.assert_close(scaling.alpha(torch.zeros_like(y)), start * torch.tensor([1.0, 0.0]))
    assert scaling.system.relative(scaling.system.rhs_NT)[1] == pytest.approx(1.0)


def test_passes_for_starts_and_missing_samples_are_counted():
    matrix, y, weights_N = rbf(40), targets(40), weights(40, zeros=[0])
    played = [torch.zeros_like(y)]
    plain, both = (
        solve_operator(Script(played), BlockedOperator(ArrayTiles(matrix.numpy(), 16)), y, RIDGE, **options)
        for options in ({}, {"weights_N": weights_N, "start_NT": torch.zeros_like(y)})
    )
    assert both.certificate.passes == pytest.approx(plain.certificate.passes + 2)
    assert both.certificate.bytes_read >= plain.certificate.bytes_read


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"warm_start": torch.zeros(5, 2)}, ConfigError, r"shape \(5, 2\); expected that of the targets, \(5, 1\)"),
        ({"warm_start": torch.full((5,), math.nan)}, NumericalError, "warm_start is NaN"),
        (
            {"warm_start": torch.ones(5), "sample_weights": torch.tensor([1, 1, 0, 1, 1])},
            ConfigError,
            "samples of weight 0",
        ),
    ],
)
def test_starts_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        solve(rbf(5), torch.ones(5), **options)


# Early stopping


def split_targets(classes):
    """Noisy targets on points of a line, every third of which is held out."""
    generator = torch.Generator().manual_seed(2)
    points = torch.rand(150, 1, generator=generator, dtype=torch.float64)
    noisy = torch.sin(8 * points) + 0.8 * torch.randn(150, 2, generator=generator, dtype=torch.float64)
    y = one_hot_targets(noisy.argmax(dim=1)) if classes else noisy
    matrix = torch.exp(-torch.cdist(points, points) / 0.02)
    held_out = torch.arange(150) % 3 == 0
    kernel = (matrix[~held_out][:, ~held_out], matrix[held_out][:, ~held_out])
    return *kernel, y[~held_out], y[held_out]


def loss_of(kernel, y, alpha, classes):
    if classes:
        return float((torch.argmax(kernel @ alpha, 1) != y.argmax(1)).double().mean())
    return float(((kernel @ alpha - y).square().mean(0) / y.square().mean(0)).mean())


ITERATIVE = {
    method: options for method, (options, _) in SOLVERS.items() if "early_stopping" in SECTIONS[method].model_fields
}


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("method", ITERATIVE)
def test_early_stopping_returns_the_step_that_did_best_on_held_out_samples(method, classes):
    matrix, between, y, held_out = split_targets(classes)
    validation = Validation(between.numpy(), held_out.numpy(), classes=classes, patience=2)
    seen = []
    solve_operator(
        solver_of(method, **ITERATIVE[method]),
        DenseOperator(matrix),
        y,
        1e-3,
        validation=validation,
        observe=lambda position: seen.append(position.best_loss),
    )
    solution = solve(matrix, y, ridge=1e-3, method=method, validation=validation, **ITERATIVE[method])
    assert solution.status in {"stopped-early", "converged"}
    assert loss_of(between, held_out, solution.alpha, classes) == pytest.approx(min(seen), rel=1e-9)
    torch.testing.assert_close(solution.fitted, matrix @ solution.alpha)
    residual = (y - matrix @ solution.alpha - 1e-3 * solution.alpha).norm(dim=0) / y.norm(dim=0)
    torch.testing.assert_close(solution.residuals, residual, rtol=1e-3, atol=1e-9)


def played(*scales):
    """Coefficients whose loss on one held-out sample with target 1 is (scale - 1)^2."""
    return [torch.full((1, 1), scale, dtype=torch.float64) for scale in scales]


def play(scales, *, patience=2, status="converged", target=1.0, **options):
    validation = Validation(torch.ones(1, 1), torch.full((1, 1), target), classes=False, patience=patience)
    # A target of 0.5 is what a solver sees as it is.
    rhs = torch.full((1, 1), 0.5, dtype=torch.float64)
    solver = Script(played(*scales), status)
    return solve_operator(solver, DenseOperator(torch.ones(1, 1)), rhs, RIDGE, validation=validation, **options)


def test_a_solve_is_stopped_after_as_many_worse_steps_as_patience_allows():
    solution = play([0.5, 0.9, 0.7, 0.8, 1.0, 1.0], patience=2)
    assert (solution.status, float(solution.alpha), solution.certificate.steps) == ("stopped-early", 0.9, 4)
    assert not solution.converged
    patient = play([0.5, 0.9, 0.7, 0.8, 1.0], patience=3)
    assert (patient.status, float(patient.alpha)) == ("converged", 1.0)


def test_the_best_step_is_returned_even_where_the_solver_converged_to_something_worse():
    solution = play([0.9, 0.5])
    assert (solution.status, float(solution.alpha)) == ("stopped-early", 0.9)


def test_a_solve_that_converged_and_is_as_good_as_any_step_has_converged():
    solution = play([0.9, 0.9, 0.9], patience=9)
    assert (solution.status, float(solution.alpha)) == ("converged", 0.9)


def test_steps_without_new_coefficients_use_up_no_patience():
    solution = play([0.0, 0.0, 0.0, 0.0, 0.8], patience=1)
    assert (solution.status, float(solution.alpha), solution.certificate.steps) == ("converged", 0.8, 5)


@pytest.mark.parametrize("status", ["indefinite", "diverged"])
def test_held_out_samples_do_not_hide_a_system_that_cannot_be_solved(status):
    solution = play([0.9, 0.2], patience=5, status=status)
    assert (solution.status, float(solution.alpha)) == (status, 0.2)


def test_a_warm_start_may_be_the_best_there_was():
    start = torch.full((1, 1), 0.3, dtype=torch.float64)
    solution = play([0.2, 0.3], target=0.3, start_NT=start)
    assert (solution.status, float(solution.alpha)) == ("stopped-early", 0.3)


def test_real_targets_of_any_unit_count_alike():
    kernel, y = torch.eye(3), targets(3, columns=2)
    loss = Validation(kernel, y, classes=False).prepared(3, 2).loss(torch.zeros(3, 2))
    assert loss == pytest.approx(1.0)
    units_T = torch.tensor([1e-200, 1e150], dtype=torch.float64)
    held_out = Validation(kernel, y * units_T, classes=False).prepared(3, 2)
    alpha = y + 0.1
    expected = float((0.01 / y.square().mean(0)).mean())
    assert held_out.loss(alpha * units_T) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("validation", "error", "message"),
    [
        (Validation(torch.ones(2, 4), torch.ones(2, 2)), ConfigError, r"kernel of shape \(2, 4\)"),
        (Validation(torch.ones(2, 5), torch.ones(3, 2)), ConfigError, r"targets of shape \(3, 2\)"),
        (Validation(torch.ones(2, 5), torch.ones(2)), ConfigError, r"targets of shape \(2, 1\)"),
        (Validation(torch.ones(0, 5), torch.ones(0, 2)), ConfigError, "V >= 1"),
        (Validation(torch.ones(2, 5), torch.ones(2, 2), patience=0), ConfigError, "patience must be at least 1"),
        (Validation(torch.ones(2, 5), torch.full((2, 2), math.nan)), NumericalError, "held-out targets"),
        (Validation(torch.full((2, 5), math.inf), torch.ones(2, 2)), NumericalError, "held-out kernel"),
        (Validation([[1.0] * 5], torch.ones(1, 2)), ConfigError, "found list"),
    ],
)
def test_held_out_samples_that_do_not_fit_are_refused(validation, error, message):
    with pytest.raises(error, match=message):
        solve(rbf(5), torch.ones(5, 2), validation=validation)
    with pytest.raises(ConfigError, match="column per class"):
        solve(rbf(5), torch.ones(5), validation=Validation(torch.ones(2, 5), torch.ones(2)))


@pytest.mark.parametrize("method", ITERATIVE)
def test_a_killed_solve_is_stopped_at_the_same_step_with_the_same_bits(method):
    matrix, between, y, held_out = split_targets(True)
    options = {
        "weights_N": weights(100, zeros=[3]),
        "start_NT": torch.zeros_like(y),
        "validation": Validation(between, held_out),
        "checkpoint_seconds": 0.0,
    }

    def run(checkpoint):
        solver = solver_of(method, **ITERATIVE[method])
        return solve_operator(solver, DenseOperator(matrix), y, 1e-3, checkpoint=checkpoint, **options)

    whole = run(None)
    dies_after = 1
    while True:
        checkpoint = MemoryCheckpoint(dies_after)
        try:
            run(checkpoint)
            break
        except Killed:
            checkpoint.dies_after = None
            resumed = run(checkpoint)
        assert torch.equal(resumed.alpha, whole.alpha)
        assert (resumed.status, resumed.certificate.steps) == (whole.status, whole.certificate.steps)
        dies_after += 1 + dies_after


# Kinds of targets


def test_several_real_targets_are_solved_as_if_each_were_alone(solver):
    options, tolerance = solver
    matrix, y = rbf(60), targets(60, columns=4)
    together = solve(matrix.numpy(), y.numpy(), ridge=RIDGE, **options)
    assert together.alpha.shape == (60, 4)
    for column in range(4):
        alone = solve(matrix.numpy(), y[:, column].numpy(), ridge=RIDGE, **options)
        assert_near(together.alpha[:, column : column + 1], alone.alpha, 10 * tolerance)


def test_classes_are_told_apart_by_the_largest_prediction(solver):
    options, _ = solver
    centres = torch.tensor([[0.0, 0], [4, 0], [0, 4]], dtype=torch.float64)
    labels = torch.arange(60) % 3
    points = centres[labels] + 0.5 * targets(60, columns=2)
    matrix = torch.exp(-torch.cdist(points, points))
    solution = solve(matrix, one_hot_targets(labels), ridge=RIDGE, **options)
    assert torch.equal(solution.fitted.argmax(dim=1), labels)
    new = centres[[2, 0, 1]] + 0.1
    kernel = torch.exp(-torch.cdist(new, points))
    assert solution.predict(kernel).argmax(dim=1).tolist() == [2, 0, 1]


def test_every_label_of_a_sample_is_a_problem_of_its_own(solver):
    options, _ = solver
    points = 2 * targets(60, columns=2)
    labels = (points > 0).double()
    matrix = torch.exp(-torch.cdist(points, points))
    solution = solve(matrix, labels.numpy().astype(bool), ridge=0.05, **options)
    assert float(((solution.fitted > 0.5) == (labels > 0.5)).double().mean()) > 0.95
    assert_near(solution.alpha, exact(matrix, labels, 0.05), 1e-4)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "longdouble", ">f8", "int8", "uint16", "uint64", "bool"]
)
def test_arrays_of_every_real_type_are_accepted(dtype):
    solution = solve(np.eye(4).astype(dtype), np.ones(4).astype(dtype), ridge=1.0)
    torch.testing.assert_close(solution.alpha, torch.full((4, 1), 0.5, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", ["complex128", "U3", "object", "datetime64[s]"])
def test_arrays_of_anything_else_are_refused(dtype):
    with pytest.raises(ConfigError, match="y must be real numbers, found an array of"):
        solve(np.eye(4), np.ones(4).astype(dtype), ridge=1.0)
