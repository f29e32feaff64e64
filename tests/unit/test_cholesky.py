"""The direct solver: exactness, jitter and what it says about matrices that are not positive definite."""

import pytest
import torch
from solving import solver_of

from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.solve import solve, solve_operator


def low_rank(size=60, rank=5):
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    return factor @ factor.T, factor @ torch.randn(rank, 2, generator=generator, dtype=torch.float64)


def with_spectrum(eigenvalues):
    generator = torch.Generator().manual_seed(1)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ basis.T
    return (matrix + matrix.T) / 2


def test_an_ill_conditioned_system_is_solved_without_jitter():
    matrix = with_spectrum(torch.logspace(0, -6, 80))
    y = torch.ones(80, 1, dtype=torch.float64)
    solution = solve(matrix, y, method="cholesky", ridge=0.0)
    exact = torch.linalg.solve(matrix, y)
    assert (solution.status, solution.jitter) == ("converged", 0.0)
    assert (solution.alpha - exact).norm() <= 1e-8 * exact.norm()


def test_the_jitter_ladder_starts_at_a_share_of_the_mean_diagonal_and_doubles():
    matrix = with_spectrum([1.0] * 19 + [-1.5e-3])
    solution = solve(matrix, torch.ones(20), method="cholesky", ridge=0.0)
    steps = solution.jitter / (1e-5 * float(matrix.diagonal().mean()))
    assert steps == pytest.approx(2**8)
    assert solution.jitter > 1.5e-3 > solution.jitter / 2


def test_refinement_removes_the_jitter_of_a_rank_deficient_but_consistent_system():
    matrix, y = low_rank()
    solution = solve(matrix, y, method="cholesky", ridge=0.0)
    assert solution.status == "converged"
    assert solution.jitter > 0
    assert (matrix @ solution.alpha - y).norm() <= 1e-8 * y.norm()


def test_an_inconsistent_rank_deficient_system_is_reported_not_hidden():
    matrix, _ = low_rank()
    solution = solve(matrix, torch.randn(60, generator=torch.Generator().manual_seed(3)), method="cholesky", ridge=0.0)
    assert solution.status == "indefinite"
    assert solution.jitter > 0
    assert float(solution.residuals.max()) > 0.5


@pytest.mark.parametrize("doublings", [0, 3])
def test_a_matrix_beyond_the_ladder_yields_zero_and_the_longest_jitter(doublings):
    matrix = with_spectrum([1.0] * 19 + [-0.5])
    solution = solve(matrix, torch.ones(20), method="cholesky", ridge=0.0, max_jitter_doublings=doublings)
    assert solution.status == "indefinite"
    assert not solution.alpha.any()
    assert solution.residuals.tolist() == [1.0]
    assert solution.jitter == pytest.approx(1e-5 * float(matrix.diagonal().mean()) * 2**doublings)


def test_a_residual_that_rounding_keeps_above_the_tolerance_is_called_stagnated():
    generator = torch.Generator().manual_seed(0)
    points = torch.linspace(0, 1, 200, dtype=torch.float64).unsqueeze(1)
    matrix = torch.exp(-torch.cdist(points, points).square())
    solution = solve(
        matrix, torch.randn(200, generator=generator), method="cholesky", ridge=1e-13, max_jitter_doublings=0
    )
    assert solution.status == "stagnated"
    assert float(solution.residuals.max()) > 1e-8


def test_the_operator_is_left_as_it_was():
    matrix = with_spectrum([1.0] * 19 + [-1.5e-3])
    before = matrix.clone()
    solve_operator(solver_of("cholesky"), DenseOperator(matrix), torch.ones(20, 1, dtype=torch.float64), 0.0)
    assert torch.equal(matrix, before)


def precise(matrix, y, ridge):
    return torch.linalg.solve(matrix.double() + ridge * torch.eye(len(matrix), dtype=torch.float64), y)


def factorised_dtypes(monkeypatch):
    """Note the precision of every factorisation."""
    found, factorise = [], torch.linalg.cholesky_ex

    def noted(matrix):
        found.append(matrix.dtype)
        return factorise(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", noted)
    return found


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_float32_matrix_is_factorised_in_float32_and_solved_as_accurately_as_in_float64(unit, monkeypatch):
    dtypes = factorised_dtypes(monkeypatch)
    matrix = unit * with_spectrum(torch.logspace(0, -3, 80))
    matrix = matrix.float()
    y = torch.randn(80, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y *= torch.tensor([1e-150, 1e150], dtype=torch.float64)
    solution = solve(matrix, y, method="cholesky", ridge=unit * 1e-3)
    assert dtypes == [torch.float32]
    assert (solution.status, solution.jitter) == ("converged", 0.0)
    assert float(solution.residuals.max()) <= 1e-12
    expected = precise(matrix, y, unit * 1e-3)
    assert bool(((solution.alpha - expected).norm(dim=0) <= 1e-10 * expected.norm(dim=0)).all())
    assert solution.certificate.condition == pytest.approx(1.001 / 2e-3, rel=0.3)


def test_a_float32_matrix_too_ill_conditioned_for_it_is_factorised_in_float64(monkeypatch):
    dtypes = factorised_dtypes(monkeypatch)
    matrix = with_spectrum(torch.logspace(0, -9, 60, dtype=torch.float64)).float()
    y = torch.randn(60, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    solution = solve(matrix, y, method="cholesky", ridge=1e-6)
    assert dtypes[0] == torch.float32
    assert dtypes[-1] == torch.float64 or float(solution.residuals.max()) <= 1e-8
    assert solution.converged
    negative = with_spectrum([1.0] * 19 + [-1.5e-3]).float()
    dtypes.clear()
    assert solve(negative, torch.ones(20), method="cholesky", ridge=0.0).jitter > 1.5e-3
    assert dtypes == [torch.float32] + 10 * [torch.float64]


def test_float64_is_used_for_everything_if_asked_for(monkeypatch):
    dtypes = factorised_dtypes(monkeypatch)
    solve(torch.eye(5), torch.ones(5), method="cholesky", precision="float64")
    solve(torch.eye(5, dtype=torch.float64), torch.ones(5), method="cholesky")
    assert dtypes == [torch.float64, torch.float64]
