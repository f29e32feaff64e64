"""Sketches and the damped preconditioner, against their dense definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solving import laplace, rbf, targets

from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.operators.metered import MeteredOperator
from ntkpipe.workers.solvers.krylov.preconditioner import LEVEL, Preconditioner, orthonormal
from ntkpipe.workers.solvers.krylov.ritz import ritz_extremes
from ntkpipe.workers.solvers.krylov.sketches import draw_sketch

KINDS = ["nystrom", "rpcholesky", "gaussian"]


def sketched(matrix, kind, rank, *, ridge=0.0, seed=0):
    return draw_sketch(DenseOperator(matrix), kind, rank, ridge, np.random.default_rng(seed))


def dense(made):
    return made.basis_NR.double() @ torch.diag(made.values_R) @ made.basis_NR.double().T


def damped(made, ridge):
    """P as the formula has it, with the complement of U."""
    basis, identity = made.basis_NR.double(), torch.eye(len(made.basis_NR), dtype=torch.float64)
    scaled = torch.diag((made.values_R + ridge) / (made.values_R[-1] + ridge))
    return basis @ scaled @ basis.T + identity - basis @ basis.T


def identity_error(basis):
    return float((basis.double().T @ basis.double() - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_a_basis_is_orthonormal_even_where_eigenvalues_fall_to_rounding(kind, dtype, tolerance):
    made = sketched(rbf(200, dtype=dtype), kind, 100).preconditioner
    assert made.basis_NR.dtype == dtype
    assert identity_error(made.basis_NR) <= tolerance
    assert bool((made.values_R.diff() <= 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sketch_of_full_rank_is_the_matrix(kind):
    matrix = laplace(60)
    made = sketched(matrix, kind, 60).preconditioner
    torch.testing.assert_close(dense(made), matrix, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_of_low_rank_is_found_exactly(kind):
    features = targets(90, columns=7)
    made = draw_sketch(FeatureOperator(features), kind, 30, 0.0, np.random.default_rng(3)).preconditioner
    assert len(made.values_R) == 7
    torch.testing.assert_close(dense(made), features @ features.T, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sketch_never_exceeds_the_matrix_and_is_almost_as_good_as_the_best_one(kind):
    matrix = laplace(200, clusters=5)
    left = matrix - dense(sketched(matrix, kind, 60).preconditioner)
    assert float(torch.linalg.eigvalsh(left)[0]) >= -1e-9
    best = float(torch.linalg.eigvalsh(matrix)[:-60].sum())
    assert float(left.trace()) <= 2.5 * best


@pytest.mark.parametrize(("kind", "passes"), [("nystrom", 0.2), ("rpcholesky", 0.2), ("gaussian", 1.0)])
def test_columns_are_read_once_and_a_product_is_one_pass(kind, passes):
    operator = MeteredOperator(DenseOperator(laplace(150)))
    draw_sketch(operator, kind, 30, 0.0, np.random.default_rng(0))
    assert operator.passes == pytest.approx(passes)


def test_pivots_are_found_where_the_matrix_is():
    # One large sample among many small ones: uniformly random columns miss it, pivots do not.
    matrix = 1e-6 * laplace(400)
    matrix[137, 137] = 1.0
    made = sketched(matrix, "rpcholesky", 10).preconditioner
    assert float(made.values_R[0]) == pytest.approx(1.0)


def test_duplicates_are_no_trouble():
    matrix = rbf(40).repeat(3, 3)
    for kind in KINDS:
        made = sketched(matrix, kind, 118).preconditioner
        torch.testing.assert_close(dense(made), matrix, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_nothing_to_sketch_in_zero(kind):
    assert sketched(torch.zeros(10, 10), kind, 5).preconditioner is None
    assert sketched(laplace(10), kind, 0).preconditioner is None


@pytest.mark.parametrize("kind", ["nystrom", "gaussian"])
def test_a_negative_eigenvalue_of_a_sketch_is_a_proof_that_the_ridge_may_refute(kind):
    matrix = laplace(80) - 0.8 * torch.eye(80, dtype=torch.float64)
    assert sketched(matrix, kind, 40).indefinite
    assert not sketched(matrix, kind, 40, ridge=1.0).indefinite


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(4, 40),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(KINDS),
    ridge=st.sampled_from([1e-8, 1e-3, 1.0]),
)
def test_products_are_with_the_inverse_of_the_damped_formula(size, seed, kind, ridge):
    made = sketched(laplace(size, seed=seed), kind, size // 2, seed=seed).preconditioner
    vectors, ridges = targets(size, columns=2, seed=seed), torch.tensor([ridge, 10 * ridge], dtype=torch.float64)
    expected = [torch.linalg.solve(damped(made, float(r)), vectors[:, i]) for i, r in enumerate(ridges)]
    torch.testing.assert_close(made.solve(vectors, ridges), torch.stack(expected, dim=1), rtol=1e-9, atol=1e-9)


def test_damping_brings_what_was_sketched_to_the_level_of_what_was_not():
    matrix, ridge = laplace(300), 1e-6
    made = sketched(matrix, "gaussian", 60).preconditioner
    system = matrix + ridge * torch.eye(300, dtype=torch.float64)

    def condition(preconditioner):
        values = torch.linalg.eigvals(torch.linalg.solve(preconditioner, system)).real
        return float(values.max() / values.min())

    undamped = dense(made) + ridge * torch.eye(300, dtype=torch.float64)
    plain = float(torch.linalg.cond(system))
    assert condition(damped(made, ridge)) <= plain / 10
    # Without damping, what was sketched is brought to the ridge, far below the rest: worse than nothing.
    assert condition(undamped) >= plain


def test_a_preconditioner_in_float32_stays_positive_definite_where_eigenvalues_are_very_different():
    basis, _ = torch.linalg.qr(targets(100, columns=20))
    values = torch.logspace(12, -12, 20, dtype=torch.float64)
    made = Preconditioner(basis.float(), values)
    inverse = made.solve(torch.eye(100, dtype=torch.float64), torch.full((100,), 1e-15, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh((inverse + inverse.T) / 2)[0]) >= 0.5 * LEVEL[torch.float32]


def test_a_factor_keeps_no_copy_and_loses_its_null_space():
    factor = torch.cat([targets(50, columns=4), torch.zeros(50, 2, dtype=torch.float64)], dim=1)
    product = factor @ factor.T
    made = orthonormal(factor, 0.0)
    assert len(made.values_R) == 4
    torch.testing.assert_close(dense(made), product, rtol=0, atol=1e-12)


def test_scalars_of_conjugate_gradients_have_the_extreme_eigenvalues():
    values = torch.linspace(1.0, 50.0, 40, dtype=torch.float64)
    residual = torch.ones(40, dtype=torch.float64)
    direction, rates, ratios = residual.clone(), [], []
    for _ in range(40):
        image = values * direction
        rate = residual.dot(residual) / direction.dot(image)
        new = residual - rate * image
        ratio = new.dot(new) / residual.dot(residual)
        rates.append(float(rate))
        ratios.append(float(ratio))
        residual, direction = new, new + ratio * direction
    found = ritz_extremes(torch.tensor(rates).double(), torch.tensor(ratios).double())
    assert found == pytest.approx((50.0, 1.0), rel=1e-3)
    assert ritz_extremes(torch.tensor(rates[:5]).double(), torch.tensor(ratios[:5]).double())[0] < 50.0
