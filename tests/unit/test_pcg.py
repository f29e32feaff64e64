"""Preconditioned conjugate gradients: passes, paths of ridges, restarts, and what it says when it cannot converge."""

import math

import pytest
import torch
from array_tiles import ArrayTiles
from solving import Killed, MemoryCheckpoint, exact, laplace, rbf, solver_of, targets

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.operators.base import AbstractOperator, Tags
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.solve import solve, solve_operator
from ntkpipe.workers.solvers.system import make_system

KINDS = ["nystrom", "rpcholesky", "gaussian", "none"]


def relative_error(alpha, matrix, y, ridge):
    expected = exact(matrix, y, ridge)
    return float(((alpha - expected).norm(dim=0) / expected.norm(dim=0)).max())


def clustered(size, *, dtype=torch.float64):
    """A rough kernel whose largest eigenvalue is far above the others."""
    return laplace(size, clusters=8, dtype=dtype)


class Recorder(AbstractOperator):
    """A matrix that notes the precision and the width of every product."""

    def __init__(self, matrix, *, noise=0.0):
        self._inner = DenseOperator(matrix)
        self._noise = noise
        self.size, self.dtype, self.block_rows, self.num_parts = len(matrix), matrix.dtype, len(matrix), 1
        self.tags = Tags()
        self.products = []

    def partial(self, vectors_NT, part):
        self.products.append((vectors_NT.dtype, vectors_NT.shape[1]))
        product_NT = self._inner.partial(vectors_NT, part)
        if self._noise and vectors_NT.dtype == torch.float32:
            seed = torch.Generator().manual_seed(len(self.products))
            product_NT += self._noise * product_NT.norm(dim=0) * torch.randn(product_NT.shape, generator=seed)
        return product_NT

    def diagonal(self):
        return self._inner.diagonal()

    def rows(self, start, stop):
        return self._inner.rows(start, stop)

    def entries(self, rows_R, columns_S):
        return self._inner.entries(rows_R, columns_S)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 10.0])
def test_every_preconditioner_leads_to_the_exact_solution(kind, ridge):
    matrix, y = clustered(200), targets(200)
    solution = solve(matrix, y, method="pcg", ridge=ridge, preconditioner=kind, rank=60, tolerance=1e-11)
    assert solution.converged
    assert relative_error(solution.alpha, matrix, y, ridge) <= 1e-8


def test_damping_is_what_makes_a_ridge_far_below_the_sketch_converge(monkeypatch):
    from ntkpipe.workers.solvers.krylov.preconditioner import Preconditioner

    matrix, y = clustered(400), targets(400)
    options = {"method": "pcg", "ridge": 1e-8, "tolerance": 1e-6, "rank": 80}
    plain = solve(matrix, y, **options, preconditioner="none")
    damped = solve(matrix, y, **options)
    monkeypatch.setattr(
        Preconditioner, "damping", lambda self, ridges_C: ridges_C / (self.values_R.unsqueeze(1) + ridges_C)
    )
    undamped = solve(matrix, y, **options)
    assert damped.converged
    assert damped.stats["passes"] <= 0.5 * plain.stats["passes"]
    assert undamped.stats["passes"] >= 0.9 * plain.stats["passes"]


@pytest.mark.parametrize("kind", KINDS)
def test_float32_products_are_refined_to_any_tolerance(kind):
    matrix, y = clustered(300, dtype=torch.float32), targets(300)
    operator = Recorder(matrix)
    solver = solver_of("pcg", tolerance=1e-11, rank=60, preconditioner=kind)
    solution = solve_operator(solver, operator, y, 1e-2)
    assert solution.converged
    assert relative_error(solution.alpha, matrix, y, 1e-2) <= 1e-9
    double = [width for dtype, width in operator.products if dtype == torch.float64]
    assert len(double) <= 5
    assert len(double) <= len(operator.products) / 4


def test_products_that_are_too_coarse_are_replaced_by_float64():
    matrix, y = clustered(150, dtype=torch.float32), targets(150)
    operator = Recorder(matrix, noise=0.3)
    solution = solve_operator(solver_of("pcg", tolerance=1e-8, rank=50), operator, y, 1e-2)
    assert solution.converged
    assert relative_error(solution.alpha, matrix, y, 1e-2) <= 1e-6
    # A few checks would be float64 anyway.
    assert sum(dtype == torch.float64 for dtype, _ in operator.products) > 10


def test_a_target_that_has_converged_leaves_the_products():
    matrix, y = clustered(200), targets(200)
    _, vectors = torch.linalg.eigh(matrix)
    y[:, 1] = vectors[:, -1]  # one step of the plain method
    operator = Recorder(matrix)
    solution = solve_operator(solver_of("pcg", tolerance=1e-8, preconditioner="none"), operator, y, 0.1)
    assert solution.converged
    widths = [width for _, width in operator.products]
    assert widths[0] == 3
    assert widths[2] == 2
    assert relative_error(solution.alpha, matrix, y, 0.1) <= 1e-6


def test_a_column_does_not_depend_on_the_others():
    matrix, y = clustered(120), targets(120)
    together = solve(matrix, y, method="pcg", ridge=0.1, rank=30)
    alone = solve(matrix, y[:, :1], method="pcg", ridge=0.1, rank=30)
    torch.testing.assert_close(together.alpha[:, :1], alone.alpha, rtol=1e-5, atol=1e-6)


def test_the_recurrence_is_never_believed():
    matrix, y = clustered(150), targets(150)
    # Products along directions are with another matrix than those with the coefficients, so that the recurrence
    # converges to the wrong solution; starting again from the true residual makes up for it.
    wrong, right = (DenseOperator(found) for found in (1.2 * matrix, matrix))
    solver, checks = solver_of("pcg", tolerance=1e-8, rank=30), 0
    state = solver.init(make_system(right, y, 1.0))
    while state.status is None:
        checks += state.checking
        state = solver.step(make_system(right if state.checking else wrong, y, 1.0), state)
    assert checks > 5
    assert state.status == "converged"
    assert relative_error(state.alpha_NT, matrix, y, 1.0) <= 1e-6


def test_no_more_products_are_taken_than_allowed():
    solution = solve(clustered(200), targets(200), method="pcg", ridge=1e-6, iterations=5, rank=20)
    assert solution.status == "budget"
    # Five along directions, one for the residual, one for the certificate, and a tenth of the columns.
    assert solution.stats["steps"] == 6
    assert solution.stats["passes"] == pytest.approx(7.1)
    assert solution.alpha.any()


def test_a_budget_is_spent_on_less_energy_every_time():
    matrix, y = clustered(200), targets(200, columns=1)

    def energy(iterations):
        alpha = solve(matrix, y, method="pcg", ridge=1e-4, iterations=iterations, preconditioner="none").alpha
        return float((alpha.T @ (matrix @ alpha + 1e-4 * alpha) / 2 - y.T @ alpha).squeeze())

    energies = [0.0, *(energy(iterations) for iterations in range(1, 12))]
    assert energies == sorted(energies, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_indefinite_matrix_is_noticed_whatever_the_preconditioner(kind):
    matrix, y = rbf(60) - 0.9 * torch.eye(60, dtype=torch.float64), targets(60)
    solution = solve(matrix, y, method="pcg", ridge=0.0, preconditioner=kind)
    assert solution.status == "indefinite"
    assert bool((solution.residuals <= 1).all())
    assert math.isnan(solution.certificate.condition)


def test_a_residual_that_cannot_be_reduced_ends_the_solve():
    # Targets outside of the range of the matrix, and no ridge: there is no solution.
    features, y = targets(60, columns=5), targets(60)
    solution = solve(FeatureOperator(features), y, method="pcg", ridge=0.0, preconditioner="none", iterations=200)
    assert solution.status in ("stagnated", "indefinite", "budget")
    assert torch.isfinite(solution.alpha).all()
    inside = solve(FeatureOperator(features), features @ targets(5), method="pcg", ridge=0.0)
    assert inside.converged


def test_a_tolerance_below_rounding_stagnates_and_keeps_the_best():
    matrix, y = rbf(100), targets(100)
    solution = solve(matrix, y, method="pcg", ridge=1e-9, tolerance=1e-15, rank=50, iterations=5000)
    assert solution.status in ("stagnated", "indefinite")
    assert float(solution.residuals.max()) <= 1e-6


def test_overflow_is_noticed():
    matrix = 1e30 * clustered(50, dtype=torch.float32)
    solution = solve(matrix * 1e7, targets(50), method="pcg", ridge=1e35, preconditioner="none", tolerance=1e-8)
    # Products that overflow in float32 do not in float64.
    assert solution.converged


@pytest.mark.parametrize("ridge", [1e-4, 1e-1])
def test_the_condition_number_is_estimated(ridge):
    matrix = clustered(250)
    values = torch.linalg.eigvalsh(matrix) + ridge
    true = float(values[-1] / values[0])
    plain = solve(matrix, targets(250), method="pcg", ridge=ridge, preconditioner="none", tolerance=1e-10)
    assert plain.certificate.condition == pytest.approx(true, rel=3e-2)
    made = solve(matrix, targets(250), method="pcg", ridge=ridge, rank=60, tolerance=1e-10)
    assert 0.8 * true <= made.certificate.condition <= 1.5 * true
    assert 1 <= float(made.extras["preconditioned_condition"]) <= true / 3
    assert float(made.extras["preconditioner_rank"]) == 60


RIDGES = (1e-3, 1e-1, 10.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_is_exact_at_every_ridge(kind):
    matrix, y = clustered(150), targets(150)
    options = {"method": "pcg", "tolerance": 1e-10, "rank": 40, "preconditioner": kind}
    solution = solve(matrix, y, ridge=1e-2, ridges=RIDGES, **options)
    path = solution.extras
    assert path["path_ridges"].tolist() == list(RIDGES)
    assert path["path_alpha"].shape == (3, 150, 3)
    assert relative_error(solution.alpha, matrix, y, 1e-2) <= 1e-8
    for ridge, alpha, residuals in zip(RIDGES, path["path_alpha"], path["path_residuals"], strict=True):
        assert relative_error(alpha, matrix, y, ridge) <= 1e-8
        true = (matrix @ alpha + ridge * alpha - y).norm(dim=0) / y.norm(dim=0)
        torch.testing.assert_close(residuals, true, rtol=1e-2, atol=1e-14)
        assert float(true.max()) <= 1e-10


def test_a_path_costs_about_as_many_passes_as_its_hardest_ridge():
    matrix, y = clustered(300), targets(300)
    options = {"method": "pcg", "rank": 60, "tolerance": 1e-8}
    ridges = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    together = solve(matrix, y, ridge=1e-5, ridges=ridges[1:], **options).stats["passes"]
    alone = [solve(matrix, y, ridge=ridge, **options).stats["passes"] for ridge in ridges]
    assert together <= 1.1 * max(alone)
    assert together <= 0.4 * sum(alone)


def test_a_path_has_the_units_of_targets_weights_and_ridge():
    matrix, y = 7.0 * clustered(80), 1e-6 * targets(80)
    weights = torch.rand(80, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    options = {"method": "pcg", "tolerance": 1e-10, "ridges": (0.3,), "ridge_scale": "mean-diagonal"}
    solution = solve(matrix, y, ridge=0.01, **options)
    assert solution.extras["path_ridges"].tolist() == pytest.approx([2.1])
    assert relative_error(solution.extras["path_alpha"][0], matrix, y, 2.1) <= 1e-8
    weighted = solve(matrix, y, method="pcg", tolerance=1e-10, ridge=0.01, ridges=(2.0,), sample_weights=weights)
    expected = torch.linalg.solve(matrix + 2.0 * torch.diag(1 / weights), y)
    torch.testing.assert_close(weighted.extras["path_alpha"][0], expected, rtol=1e-6, atol=1e-12)


def test_a_path_cannot_start_from_the_coefficients_of_one_ridge():
    matrix, y = clustered(40), targets(40)
    with pytest.raises(ConfigError, match="warm start"):
        solve(matrix, y, method="pcg", ridge=0.1, ridges=(1.0,), warm_start=exact(matrix, y, 0.2))


def test_a_path_in_units_of_the_diagonal_needs_one():
    with pytest.raises(ConfigError, match="above 0"):
        solve(laplace(5), torch.ones(5), method="pcg", ridge=0.0, ridge_scale="mean-diagonal", ridges=(1.0,))


def test_a_warm_start_is_worth_its_passes():
    matrix, y = clustered(200), targets(200)
    options = {"method": "pcg", "ridge": 1e-3, "rank": 50, "tolerance": 1e-8}
    cold = solve(matrix, y, **options)
    warm = solve(matrix, y, **options, warm_start=cold.alpha * (1 + 1e-5))
    assert warm.converged
    assert warm.stats["steps"] < cold.stats["steps"] / 1.5
    assert relative_error(warm.alpha, matrix, y, 1e-3) <= 1e-6


def test_a_path_over_float32_tiles_is_resumed_in_the_middle_of_a_step_to_the_same_bits():
    matrix = clustered(90, dtype=torch.float32)
    operator, y = BlockedOperator(ArrayTiles(matrix.numpy(), 32)), targets(90)
    solver = solver_of("pcg", tolerance=1e-9, rank=20, ridges=(1.0,))
    whole = solve_operator(solver, operator, y, 1e-3)
    assert whole.converged
    for dies_after in (1, 2, 5, 23, 41):
        checkpoint = MemoryCheckpoint(dies_after)
        with pytest.raises(Killed):
            solve_operator(solver, operator, y, 1e-3, checkpoint=checkpoint, checkpoint_seconds=0.0)
        checkpoint.dies_after = None
        resumed = solve_operator(solver, operator, y, 1e-3, checkpoint=checkpoint, checkpoint_seconds=0.0)
        assert torch.equal(resumed.alpha, whole.alpha)
        assert torch.equal(resumed.extras["path_alpha"], whole.extras["path_alpha"])
