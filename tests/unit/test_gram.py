"""Ridge regression through the Gram matrix of features: exactness, paths, leave-one-out errors, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import Killed, MemoryCheckpoint, exact, rbf, solver_of, targets

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.operators.rectangle import AbstractRectangle
from ntkpipe.workers.solvers.direct import streaming
from ntkpipe.workers.solvers.solve import solve, solve_operator

SHAPES = [(90, 12), (12, 90), (40, 40)]
PATH = (0.01, 0.1, 1.0, 10.0, 100.0)


class Rows(AbstractRectangle):
    """Features in storage: small blocks, and a count of what was read."""

    def __init__(self, matrix, block_rows):
        self.matrix, self.block_rows = matrix, block_rows
        self.shape, self.dtype, self.entry_bytes = tuple(matrix.shape), matrix.dtype, 4.0
        self.read = 0

    def rows(self, start, stop):
        assert start % self.block_rows == 0, "blocks are read whole"
        self.read += stop - start
        return self.matrix[start:stop]


def features(rows, columns, *, seed=3, dtype=torch.float64):
    return targets(rows, columns=columns, seed=seed).to(dtype)


def gram_of(matrix):
    return matrix.double() @ matrix.double().T


def left_out(matrix, y, ridge):
    """Leave-one-out errors by leaving samples out."""
    errors = torch.empty_like(y)
    for at in range(len(y)):
        kept = [row for row in range(len(y)) if row != at]
        kernel = gram_of(matrix)
        alpha = exact(kernel[kept][:, kept], y[kept], ridge)
        errors[at] = y[at] - kernel[at, kept] @ alpha
    return errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_sides_solve_the_ridge_system(shape, dtype):
    matrix, y = features(*shape, dtype=dtype), targets(shape[0])
    solution = solve(FeatureOperator(matrix), y, method="gram", ridge=0.5, tolerance=1e-10)
    expected = exact(gram_of(matrix), y, 0.5)
    assert solution.converged
    assert solution.certificate.equation == "ridge"
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-9 * float(expected.norm()))
    torch.testing.assert_close(solution.fitted, gram_of(matrix) @ expected, rtol=0, atol=1e-8)
    torch.testing.assert_close(solution.extras["weights"], matrix.double().T @ expected, rtol=0, atol=1e-8)
    assert solution.jitter == 0.0


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 2**16),
    exponent=st.integers(-8, 8),
    single=st.booleans(),
)
def test_features_of_any_shape_and_unit_are_solved(rows, columns, seed, exponent, single):
    matrix = 10.0**exponent * features(rows, columns, seed=seed)
    matrix = matrix.float() if single else matrix
    y, ridge = targets(rows, seed=seed + 1), 10.0 ** (2 * exponent)
    solution = solve(FeatureOperator(matrix), y, method="gram", ridge=ridge, tolerance=1e-9)
    assert solution.converged
    expected = exact(gram_of(matrix), y, ridge)
    assert float((solution.alpha - expected).norm()) <= 1e-8 * float(expected.norm())


@pytest.mark.parametrize(
    ("shape", "readings"),
    [((90, 12), 1 + 1 + 2), ((12, 90), 1 + 2 + 1 + 2)],  # Gram, refinement, (weights), certificate
)
def test_what_is_read_of_the_features_is_counted(shape, readings, monkeypatch):
    monkeypatch.setattr(streaming, "PANEL", 10)
    rows, y = Rows(features(*shape), 10), targets(shape[0])
    solution = solve(FeatureOperator(rows), y, method="gram", ridge=0.5, tolerance=1e-10)
    torch.testing.assert_close(solution.alpha, exact(gram_of(rows.matrix), y, 0.5), rtol=0, atol=1e-9)
    assert solution.stats["passes"] == pytest.approx(readings / 2)
    assert solution.stats["bytes_read"] == pytest.approx(readings * shape[0] * shape[1] * 4)
    # Diagonals, which backward errors are relative to, are not counted.
    assert readings * shape[0] < rows.read <= (readings + 2) * shape[0]


def test_parts_depend_on_the_shape_only_and_are_at_most_16():
    solver = solver_of("gram")
    for rows, block, expected in [(1, 1, 1), (16, 1, 16), (65, 1, 13), (1000, 10, 15), (1000, 1000, 1)]:
        assert solver.num_parts(FeatureOperator(Rows(torch.ones(rows, 1), block))) <= 16
        assert streaming.num_row_parts(Rows(torch.ones(rows, 1), block)) == expected


def test_the_sum_over_parts_is_the_gram_matrix_with_the_projected_targets():
    matrix, y = features(95, 7), targets(95)
    rows = Rows(matrix, 10)
    parts = [streaming.primal_part(rows, y, part, torch.float64) for part in range(streaming.num_row_parts(rows))]
    total = sum(parts)
    torch.testing.assert_close(streaming.mirrored(total[:, :7].clone()), matrix.T @ matrix)
    torch.testing.assert_close(total[:, 7:], matrix.T @ y)


def test_a_dual_gram_matrix_of_several_parts_is_complete(monkeypatch):
    monkeypatch.setattr(streaming, "DUAL_ROWS", 20)
    monkeypatch.setattr(streaming, "PANEL", 8)
    monkeypatch.setattr(streaming, "LONGEST_SUM", 16)
    matrix = features(50, 70)
    rows = Rows(matrix, 1)
    assert streaming.num_dual_parts(rows) == 3
    total = sum(streaming.dual_part(rows, part, torch.float64) for part in range(3))
    torch.testing.assert_close(streaming.mirrored(total), matrix @ matrix.T)


def test_float32_products_are_added_up_in_float64():
    matrix, y = features(20_000, 6, dtype=torch.float32) + 1, targets(20_000, columns=1)
    rows = Rows(matrix, 2048)
    parts = range(streaming.num_row_parts(rows))
    total = sum(streaming.primal_part(rows, y, part, torch.float32) for part in parts)
    expected = matrix.double().T @ matrix.double()
    found = streaming.mirrored(total[:, :6].clone())
    assert 0 < float((found - expected).norm() / expected.norm()) <= 5e-7


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("select", ["none", "loo", "gcv"])
def test_a_ridge_path_agrees_with_solves_and_with_leaving_samples_out(shape, select):
    matrix = features(*shape)
    y = matrix @ targets(shape[1], columns=2, seed=8) + targets(shape[0], columns=2, seed=9)
    y = y * torch.tensor([1e-3, 1e4], dtype=torch.float64)
    solution = solve(
        FeatureOperator(matrix), y, method="gram", ridge=3.0, ridges=PATH, select=select, leave_one_out=True
    )
    kernel, extras = gram_of(matrix), solution.extras
    squares_T = y.square().mean(dim=0)
    for at, ridge in enumerate(PATH):
        smoother = kernel @ torch.linalg.inv(kernel + ridge * torch.eye(shape[0], dtype=torch.float64))
        train = ((y - smoother @ y).square().mean(dim=0) / squares_T).mean()
        dof = float(smoother.trace())
        loo = (left_out(matrix, y, ridge).square().mean(dim=0) / squares_T).mean()
        assert float(extras["path_dof"][at]) == pytest.approx(dof, rel=1e-8)
        assert float(extras["path_train_mse"][at]) == pytest.approx(float(train), rel=1e-6)
        assert float(extras["path_gcv"][at]) == pytest.approx(float(train) / (1 - dof / shape[0]) ** 2, rel=1e-5)
        assert float(extras["path_loo"][at]) == pytest.approx(float(loo), rel=1e-6)
    chosen = {"none": 3.0, "loo": PATH[int(extras["path_loo"].argmin())], "gcv": PATH[int(extras["path_gcv"].argmin())]}
    assert solution.ridge == chosen[select]
    expected = exact(kernel, y, solution.ridge)
    torch.testing.assert_close(solution.alpha / squares_T.sqrt(), expected / squares_T.sqrt(), rtol=0, atol=1e-7)
    assert solution.converged
    torch.testing.assert_close(
        solution.residuals,
        (kernel @ solution.alpha + solution.ridge * solution.alpha - y).norm(dim=0) / y.norm(dim=0),
        rtol=1e-2,
        atol=1e-13,
    )
    predicted = y - solution.ridge * solution.alpha / (1 - extras["leverages"]).unsqueeze(1)
    torch.testing.assert_close(
        (y - predicted) / squares_T.sqrt(), left_out(matrix, y, solution.ridge) / squares_T.sqrt(), rtol=0, atol=1e-6
    )


def test_a_path_without_a_leave_one_out_pass_costs_no_pass():
    rows, y = Rows(features(90, 12), 10), targets(90)
    plain = solve(FeatureOperator(rows), y, method="gram", ridge=1.0)
    path = solve(FeatureOperator(rows), y, method="gram", ridge=1.0, ridges=PATH)
    assert path.stats["passes"] == pytest.approx(plain.stats["passes"])
    assert "path_loo" not in path.extras
    assert torch.allclose(path.alpha, plain.alpha)
    loo = solve(FeatureOperator(rows), y, method="gram", ridges=PATH, select="loo")
    torch.testing.assert_close(loo.extras["path_train_mse"], path.extras["path_train_mse"], rtol=1e-9, atol=0)


def test_a_path_in_units_of_the_mean_diagonal_follows_the_features():
    matrix, y = features(60, 8), targets(60)
    kernel = gram_of(matrix)
    mean = float(kernel.diagonal().mean())
    options = {"method": "gram", "ridges": PATH, "select": "gcv"}
    relative = solve(FeatureOperator(matrix), y, ridge_scale="mean-diagonal", **options)
    torch.testing.assert_close(relative.extras["path_ridges"], mean * torch.tensor(PATH, dtype=torch.float64))
    no_ridge = solve(FeatureOperator(matrix), y, ridge=0.0, ridge_scale="mean-diagonal", **options)
    torch.testing.assert_close(no_ridge.extras["path_ridges"], relative.extras["path_ridges"])
    assert no_ridge.certificate.equation == "ridge"
    assert no_ridge.ridge == pytest.approx(relative.ridge)


def test_float32_features_with_a_path_select_what_float64_selects():
    matrix = features(300, 20)
    y = matrix @ targets(20, columns=1, seed=8) + 5 * targets(300, columns=1, seed=9)
    found = [
        solve(FeatureOperator(m), y, method="gram", ridges=PATH, select="loo")
        for m in (matrix.float(), matrix.float().double())
    ]
    assert found[0].ridge == found[1].ridge
    torch.testing.assert_close(found[0].extras["path_loo"], found[1].extras["path_loo"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_without_a_ridge_the_least_squares_solution_of_minimum_norm_is_found(shape):
    matrix, y = features(*shape), targets(shape[0])
    matrix[:, 5] = matrix[:, 4]
    solution = solve(FeatureOperator(matrix), y, method="gram", ridge=0.0)
    expected = torch.linalg.pinv(gram_of(matrix), rtol=1e-12) @ y
    assert solution.converged
    assert solution.certificate.equation == "least-squares"
    assert float(solution.residuals.max()) <= 1e-10
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(solution.extras["weights"], torch.linalg.pinv(matrix) @ y, rtol=0, atol=1e-9)


def test_the_least_squares_residual_tells_a_wrong_answer():
    matrix, y = features(50, 5), targets(50)
    solver = solver_of("gram", ridge=0.0)
    operator = FeatureOperator(matrix)
    right = solve_operator(solver, operator, y, 0.0)
    worse = solve(operator, y, method="gram", ridge=0.0, tolerance=1e-30, max_refinements=0)
    assert right.converged
    assert worse.status in ("budget", "stagnated")


def test_zero_features_have_the_answer_of_the_ridge_alone():
    y = targets(20)
    solution = solve(FeatureOperator(torch.zeros(20, 3)), y, method="gram", ridge=2.0)
    torch.testing.assert_close(solution.alpha, y / 2)
    least = solve(FeatureOperator(torch.zeros(20, 3)), y, method="gram", ridge=0.0)
    assert least.converged
    assert not least.alpha.any()


def test_a_ridge_too_small_for_float32_products_is_solved_with_float64_ones():
    matrix = features(200, 10) @ torch.diag(torch.logspace(0, -4, 10, dtype=torch.float64)) @ features(10, 10, seed=4)
    matrix = matrix.float()
    y = matrix.double() @ targets(10, seed=6)
    options = {"method": "gram", "ridge": 1e-6}
    found, double = (solve(FeatureOperator(matrix), y, precision=p, **options) for p in ("auto", "float64"))
    assert found.converged
    assert found.certificate.passes > double.certificate.passes
    expected = exact(gram_of(matrix), y, 1e-6)
    assert float((gram_of(matrix) @ (found.alpha - expected)).norm()) <= 1e-5 * float(y.norm())


def test_a_ridge_below_rounding_is_reported_as_jitter_and_never_as_more_than_it_is():
    matrix = features(60, 6).repeat(1, 2)
    y = matrix @ targets(12, seed=6) + targets(60, seed=7)
    solution = solve(FeatureOperator(matrix), y, method="gram", ridge=1e-14)
    assert solution.jitter > 0
    assert "jittered" in solution.certificate.flags
    assert solution.converged == bool(solution.residuals.max() <= 1e-6)


def test_a_tolerance_out_of_reach_is_called_stagnated_and_the_best_residual_is_kept():
    matrix, y = features(60, 6), targets(60)
    solution = solve(FeatureOperator(matrix), y, method="gram", ridge=1e-6, tolerance=1e-16)
    assert solution.status == "stagnated"
    assert float(solution.residuals.max()) <= 1e-6


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_killed_solve_goes_on_and_ends_with_the_same_bits(shape, dtype):
    operator, y = FeatureOperator(Rows(features(*shape, dtype=dtype), 20)), targets(shape[0])
    solver = solver_of("gram", ridges=PATH, select="loo")
    whole = solve_operator(solver, operator, y, 0.1)
    for dies_after in range(1, 40):
        checkpoint = MemoryCheckpoint(dies_after)
        try:
            solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
            break
        except Killed:
            checkpoint.dies_after = None
        resumed = solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
        assert torch.equal(resumed.alpha, whole.alpha)
        assert resumed.ridge == whole.ridge
        assert all(torch.equal(resumed.extras[name], value) for name, value in whole.extras.items())
    else:
        pytest.fail("the solve did not end")


def test_sample_weights_weigh_the_features():
    matrix, y = features(50, 6), targets(50)
    weights = torch.rand(50, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    solution = solve(FeatureOperator(matrix), y, method="gram", ridge=0.5, sample_weights=weights)
    expected = torch.linalg.solve(gram_of(matrix) + 0.5 * torch.diag(1 / weights), y)
    torch.testing.assert_close(solution.alpha, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(solution.extras["weights"], matrix.T @ expected, rtol=0, atol=1e-9)


def test_a_warm_start_is_corrected_unless_a_path_is_asked_for():
    matrix, y = features(50, 6), targets(50)
    start = 0.9 * exact(gram_of(matrix), y, 0.5)
    options = {"method": "gram", "ridge": 0.5, "warm_start": start}
    solution = solve(FeatureOperator(matrix), y, **options)
    torch.testing.assert_close(solution.alpha, exact(gram_of(matrix), y, 0.5), rtol=0, atol=1e-8)
    assert "weights" not in solution.extras
    with pytest.raises(ConfigError, match="cannot start from warm_start"):
        solve(FeatureOperator(matrix), y, ridges=PATH, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"select": "loo"}, "needs a path"),
        ({"ridges": (1.0, 0.0)}, "ridges"),
        ({"ridges": (float("inf"),)}, "ridges"),
        ({"leave_one_out": True, "ridge": 0.0}, "leave_one_out needs a ridge"),
        ({"select": "aic", "ridges": (1.0,)}, "select"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        solve(FeatureOperator(features(5, 2)), torch.ones(5), method="gram", **options)


def test_a_kernel_without_features_is_refused():
    with pytest.raises(ConfigError, match="only known by its entries"):
        solve(rbf(10), torch.ones(10), method="gram")


def test_products_that_overflow_are_refused():
    with pytest.raises(NumericalError, match="overflow"):
        solve(FeatureOperator(torch.full((9, 2), 1e200, dtype=torch.float64)), torch.ones(9), method="gram")
    large = solve(FeatureOperator(torch.full((9, 2), 1e30)), torch.ones(9), method="gram", ridge=1e60)
    assert large.converged
