"""The contract of every solver, and the library function over them."""

import numpy as np
import pytest
import torch
from array_tiles import ArrayTiles
from golden import KRR_ALPHA, TRNTK0
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import Killed, MemoryCheckpoint, exact, rbf, solver_of, targets

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.solve import one_hot_targets, solve, solve_operator

SOLVERS = {
    "cholesky": ({}, 1e-10),
    "eigenpro2": ({"epochs": 500, "tolerance": 1e-9, "subsample": 60}, 1e-7),
    "pcg": ({"tolerance": 1e-10, "rank": 40}, 1e-8),
    "gauss-seidel": ({"epochs": 3000, "tolerance": 1e-9, "block_rows": 75}, 1e-7),
    "askotch": ({"epochs": 1000, "tolerance": 1e-10, "block_rows": 50, "rank": 20}, 1e-7),
}
"""Options with which a solver is expected to be exact, and to which relative error."""

LITTLE = {"eigenpro2": {"epochs": 20}, "gauss-seidel": {"epochs": 20}, "askotch": {"epochs": 20}}
"""Options for systems that cannot be solved anyway."""


@pytest.fixture(params=SOLVERS)
def solver(request):
    options, tolerance = SOLVERS[request.param]
    return {"method": request.param, **options}, tolerance


def assert_exact(solution, matrix, y, ridge, tolerance):
    expected = exact(matrix, y, ridge)
    errors_T = (solution.alpha - expected).norm(dim=0) / expected.norm(dim=0)
    residuals_T = (matrix @ solution.alpha + ridge * solution.alpha - y).norm(dim=0) / y.norm(dim=0)
    assert solution.converged
    assert solution.alpha.dtype == torch.float64
    assert float(errors_T.max()) <= tolerance
    torch.testing.assert_close(solution.residuals, residuals_T, rtol=1e-3, atol=1e-12)


def test_every_solver_is_exact_on_a_well_conditioned_system(solver):
    options, tolerance = solver
    matrix, y = rbf(150), targets(150)
    solution = solve(matrix, y, ridge=0.1, **options)
    assert_exact(solution, matrix, y, 0.1, tolerance)
    assert solution.method == options["method"]
    assert (solution.ridge, solution.jitter) == (0.1, 0.0)
    assert solution.stats.keys() == {"steps", "passes", "bytes_read", "condition", "seconds"}


def test_every_solver_gives_the_golden_coefficients(solver):
    options, _ = solver
    solution = solve(torch.tensor(TRNTK0), torch.tensor([-1, 1, 1, -1]), ridge=1.0, **options)
    torch.testing.assert_close(solution.alpha[:, 0], torch.tensor(KRR_ALPHA).double(), rtol=0, atol=2e-8)


def test_one_dimensional_targets_become_one_column(solver):
    options, tolerance = solver
    matrix, y = rbf(80), targets(80, columns=1)
    solution = solve(matrix.numpy(), y[:, 0].numpy(), ridge=0.1, **options)
    assert solution.alpha.shape == (80, 1)
    assert_exact(solution, matrix, y, 0.1, tolerance)


def test_targets_of_any_unit_are_solved_equally_well(solver):
    options, tolerance = solver
    matrix, y = rbf(80), targets(80)
    units_T = torch.tensor([1e-6, 1e6, 1e-200], dtype=torch.float64)
    solution = solve(matrix, y * units_T, ridge=0.1, **options)
    assert solution.converged
    errors_T = (solution.alpha / units_T - exact(matrix, y, 0.1)).norm(dim=0) / exact(matrix, y, 0.1).norm(dim=0)
    assert float(errors_T.max()) <= tolerance


@pytest.mark.parametrize("unit", [1e-6, 10.0, 1e6])
def test_kernels_of_any_unit_are_solved_equally_well(solver, unit):
    options, tolerance = solver
    matrix, y = rbf(80), targets(80)
    assert_exact(solve(unit * matrix, y, ridge=unit * 0.1, **options), unit * matrix, y, unit * 0.1, tolerance)


def test_a_ridge_in_units_of_the_mean_diagonal_follows_the_kernel(solver):
    options, tolerance = solver
    matrix, y = 7.0 * rbf(80), targets(80)
    solution = solve(matrix, y, ridge=0.1, ridge_scale="mean-diagonal", **options)
    assert solution.ridge == pytest.approx(0.7, rel=1e-12)
    assert_exact(solution, matrix, y, solution.ridge, tolerance)


def test_duplicate_rows_are_solved(solver):
    options, tolerance = solver
    matrix, y = rbf(60).repeat(2, 2), targets(120)
    assert_exact(solve(matrix, y, ridge=0.5, **options), matrix, y, 0.5, tolerance)


def test_a_sample_without_any_kernel_is_solved(solver):
    options, tolerance = solver
    matrix, y = rbf(60), targets(60)
    matrix[7], matrix[:, 7] = 0.0, 0.0
    assert_exact(solve(matrix, y, ridge=0.5, **options), matrix, y, 0.5, tolerance)


def test_zero_targets_have_zero_coefficients_and_residuals(solver):
    options, tolerance = solver
    matrix, y = rbf(50), targets(50)
    y[:, 1] = 0.0
    solution = solve(matrix, y, ridge=0.1, **options)
    assert solution.converged
    assert not solution.alpha[:, 1].any()
    assert float(solution.residuals[1]) == 0.0
    assert float((solution.alpha - exact(matrix, y, 0.1)).norm()) <= tolerance * 100


def test_a_single_sample_is_solved(solver):
    options, _ = solver
    solution = solve(torch.tensor([[3.0]]), torch.tensor([2.0]), ridge=1.0, **options)
    assert solution.converged
    assert float(solution.alpha) == pytest.approx(0.5, rel=1e-8)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_fewer_samples_than_a_sub_sample_are_solved(solver, size):
    options, tolerance = solver
    assert_exact(solve(rbf(size), targets(size), ridge=0.1, **options), rbf(size), targets(size), 0.1, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ridge_below_precision_is_flagged_and_no_answer_is_worse_than_none(solver, dtype):
    options, _ = solver
    points = torch.linspace(0, 1, 120, dtype=torch.float64).unsqueeze(1)
    matrix = torch.exp(-torch.cdist(points, points).square()).to(dtype)
    solution = solve((matrix + matrix.T) / 2, targets(120), ridge=1e-18, **options | LITTLE.get(options["method"], {}))
    assert "ridge-below-precision" in solution.certificate.flags
    assert torch.isfinite(solution.alpha).all()
    assert solution.converged or solution.status in solution.certificate.flags
    assert float(solution.residuals.max()) <= 1 + 1e-12
    assert "ridge-below-precision" not in solve(rbf(20), targets(20), ridge=1e-3, **options).certificate.flags


def test_the_same_call_gives_the_same_bits(solver):
    options, _ = solver
    first, second = (solve(rbf(80), targets(80), ridge=0.1, **options) for _ in range(2))
    assert torch.equal(first.alpha, second.alpha)
    assert torch.equal(first.residuals, second.residuals)


def test_an_indefinite_matrix_never_passes_in_silence(solver):
    options, _ = solver
    matrix = rbf(60) - 0.9 * torch.eye(60, dtype=torch.float64)
    solution = solve(matrix, targets(60), ridge=0.0, **options)
    assert solution.status == "indefinite"
    assert float(solution.residuals.max()) > 1e-3


def test_the_zero_matrix_without_ridge_is_called_indefinite(solver):
    options, _ = solver
    solution = solve(torch.zeros(3, 3), torch.ones(3), ridge=0.0, **options)
    assert solution.status == "indefinite"
    assert solution.residuals.tolist() == [1.0]


def test_stored_tiles_are_solved_like_the_matrix(solver):
    options, tolerance = solver
    matrix, y = rbf(90), targets(90)
    operator = BlockedOperator(ArrayTiles(matrix.numpy(), 20))
    assert_exact(solve(operator, y, ridge=0.1, **options), matrix, y, 0.1, tolerance)


def test_features_are_solved_like_their_gram_matrix(solver):
    options, tolerance = solver
    features, y = targets(70, columns=9, seed=1).float(), targets(70)
    gram = features.double() @ features.double().T
    assert_exact(solve(features, y, ridge=2.0, **options), gram, y, 2.0, tolerance)
    square = targets(70, columns=70, seed=2)
    assert_exact(solve(FeatureOperator(square), y, ridge=100.0, **options), square @ square.T, y, 100.0, tolerance)


def test_predictions_are_kernel_times_coefficients(solver):
    options, _ = solver
    matrix, y = rbf(50), targets(50)
    solution = solve(matrix, y, ridge=0.1, **options)
    torch.testing.assert_close(solution.predict(matrix[:5].float()), matrix[:5] @ solution.alpha, rtol=0, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(sorted(SOLVERS)),
    size=st.integers(1, 25),
    columns=st.integers(1, 3),
    seed=st.integers(0, 2**16),
    exponent=st.integers(-8, 8),
)
def test_any_well_conditioned_system_is_solved(method, size, columns, seed, exponent):
    options, tolerance = SOLVERS[method]
    unit = 10.0**exponent
    matrix, y = unit * rbf(size, seed=seed), targets(size, columns=columns, seed=seed + 1)
    assert_exact(solve(matrix, y, ridge=unit, method=method, **options), matrix, y, unit, tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_are_refused_with_their_place(solver, value):
    options, _ = solver
    matrix, y = rbf(20), targets(20)
    bad_matrix, bad_y = matrix.clone(), y.clone()
    bad_matrix[3, 11], bad_y[17, 2] = value, value
    with pytest.raises(NumericalError, match="kernel matrix is NaN or infinite at row 3, column 11"):
        solve(bad_matrix, y, **options)
    with pytest.raises(NumericalError, match="y is NaN or infinite at row 17, column 2"):
        solve(matrix, bad_y, **options)


def test_a_non_symmetric_kernel_is_refused(solver):
    options, _ = solver
    matrix = rbf(20)
    matrix[4, 2] += 0.1
    with pytest.raises(NumericalError, match="not symmetric"):
        solve(matrix, targets(20), **options)


@pytest.mark.parametrize("y", [torch.zeros(19), torch.zeros(20, 2, 1), torch.zeros(20, 0), torch.tensor(1.0)])
def test_targets_of_another_shape_are_refused(solver, y):
    options, _ = solver
    with pytest.raises(ConfigError, match="20 samples"):
        solve(rbf(20), y, **options)


@pytest.mark.parametrize("ridge", [-1e-9, float("nan"), float("inf")])
def test_a_ridge_that_is_negative_or_no_number_is_refused(solver, ridge):
    options, _ = solver
    with pytest.raises(ConfigError, match="ridge"):
        solve(rbf(5), torch.ones(5), ridge=ridge, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "choleski"}, "did you mean 'cholesky'"),
        ({"method": "cholesky", "epochs": 3}, "unknown option of cholesky 'epochs'"),
        ({"method": "eigenpro2", "epoch": 3}, "did you mean 'epochs'"),
        ({"method": "eigenpro2", "epochs": 0}, "epochs: .*found 0"),
        ({"method": "eigenpro2", "name": "mine"}, "unknown option of eigenpro2 'name'"),
        ({"ridge_scale": "relative"}, "ridge_scale"),
    ],
)
def test_an_unknown_method_or_option_is_refused_with_a_hint(arguments, message):
    with pytest.raises(ConfigError, match=message):
        solve(rbf(5), torch.ones(5), **arguments)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ([[1.0]], "found list"),
        (torch.eye(3, dtype=torch.complex64), "must be real"),
        (torch.zeros(0, 0), "square"),
        (torch.zeros(3), r"\(N, K\)"),
    ],
)
def test_what_is_no_kernel_is_refused(kernel, message):
    with pytest.raises(ConfigError, match=message):
        solve(kernel, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.bool])
def test_every_real_dtype_is_accepted(dtype):
    solution = solve(torch.eye(4).to(dtype), torch.ones(4).to(dtype), ridge=1.0)
    torch.testing.assert_close(solution.alpha, torch.full((4, 1), 0.5, dtype=torch.float64), rtol=1e-14, atol=0)


def test_gradients_and_inputs_are_left_alone():
    matrix, y = rbf(10).requires_grad_(), targets(10)
    before = matrix.detach().clone(), y.clone()
    assert not solve(matrix, y).alpha.requires_grad
    assert torch.equal(matrix.detach(), before[0])
    assert torch.equal(y, before[1])


def test_arrays_with_negative_strides_are_accepted():
    matrix, y = rbf(10), targets(10)
    flipped = solve(np.flip(matrix.numpy()), np.flip(y.numpy(), axis=0))
    torch.testing.assert_close(flipped.alpha.flip(0), solve(matrix, y).alpha)


def test_a_killed_solve_goes_on_and_ends_with_the_same_bits(solver):
    options, _ = solver
    operator, y = BlockedOperator(ArrayTiles(rbf(90).numpy(), 32)), targets(90)
    whole = solve_operator(solver_of(**options), operator, y, 0.1)
    dies_after = 1
    while True:
        checkpoint = MemoryCheckpoint(dies_after)
        try:
            resumed = solve_operator(
                solver_of(**options), operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0
            )
            break
        except Killed:
            checkpoint.dies_after = None
            resumed = solve_operator(
                solver_of(**options), operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0
            )
        assert torch.equal(resumed.alpha, whole.alpha)
        assert resumed.certificate.steps == whole.certificate.steps
        assert resumed.certificate.passes == pytest.approx(whole.certificate.passes)
        dies_after *= 4
    assert torch.equal(resumed.alpha, whole.alpha)
    assert checkpoint.saved >= 1


def test_one_hot_targets_have_a_one_in_the_column_of_the_class():
    labels = torch.tensor([0, 2, 1], dtype=torch.int32)
    assert one_hot_targets(labels).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert one_hot_targets(labels, 5).shape == (3, 5)
    assert one_hot_targets(labels).dtype == torch.float64


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        (torch.tensor([0, 3]), 3, "from 0 to 2, found 0 to 3"),
        (torch.tensor([-1, 1]), None, "at least 0, found -1"),
        (torch.tensor([0.0, 1.0]), None, "integer"),
        (torch.tensor([[0], [1]]), None, r"\(2, 1\)"),
        (torch.tensor([], dtype=torch.int64), None, r"\(0,\)"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, num_classes, message):
    with pytest.raises(ConfigError, match=message):
        one_hot_targets(labels, num_classes)
