"""What every kind of solver does with bad, extreme and degenerate input: it refuses, or it tells the truth.

The truth is recomputed here in float64. A solution that has not converged must be no worse than the zero answer, by its
residual or by what the method minimises.
"""

from dataclasses import dataclass, field

import pytest
import torch
from array_tiles import ArrayTiles
from solving import MemoryCheckpoint, laplace, rbf, solver_of, targets

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.base import SolverState
from ntkpipe.workers.solvers.centres.fit import fit_centres
from ntkpipe.workers.solvers.direct.cholesky import extreme_eigenvalues
from ntkpipe.workers.solvers.loop import SolveLoop
from ntkpipe.workers.solvers.solve import one_hot_targets, solve, solve_operator
from ntkpipe.workers.solvers.system import make_system
from ntkpipe.workers.spectra.posterior import posterior

pytestmark = pytest.mark.timeout(30)

N = 40

STATUSES = {"converged", "budget", "stagnated", "indefinite", "diverged"}

TOLERANCE = {"cholesky": 1e-8, "pcg": 1e-6, "gram": 1e-6, "filter": 1e-6, "falkon": 1e-6}
"""Defaults; 1e-4 for all others."""

GROWTH = 30.0
"""A residual may be this many times that of zero where what the method minimises is smaller, as it is in the first steps
of conjugate gradients or after an epoch of Gauss-Seidel."""


@dataclass(frozen=True)
class Kind:
    """A solver with options for N = 40, and the options that leave it a single step."""

    method: str
    options: dict[str, object] = field(default_factory=dict)
    budget: dict[str, object] = field(default_factory=dict)
    needs_ridge: bool = False


PCG = {"rank": 20}
KINDS = {
    "cholesky": Kind("cholesky", {}, {"max_jitter_doublings": 0}),
    "pcg-nystrom": Kind("pcg", PCG, {"iterations": 1}),
    "pcg-rpcholesky": Kind("pcg", PCG | {"preconditioner": "rpcholesky"}, {"iterations": 1}),
    "pcg-gaussian": Kind("pcg", PCG | {"preconditioner": "gaussian"}, {"iterations": 1}),
    "pcg-none": Kind("pcg", {"preconditioner": "none"}, {"iterations": 1}),
    "pcg-path": Kind("pcg", PCG | {"ridges": (0.5,)}, {"iterations": 1}),
    "eigenpro2": Kind("eigenpro2", {"subsample": 10, "top": 5}, {"epochs": 1}),
    "gauss-seidel": Kind("gauss-seidel", {"epochs": 20, "block_rows": 16}, {"epochs": 1}),
    "askotch": Kind("askotch", {"block_rows": 16, "rank": 5}, {"epochs": 1}),
    "gram": Kind("gram", {}, {"max_refinements": 0}),
    "gram-loo": Kind("gram", {"ridges": (1e-3, 0.1, 10.0), "select": "loo"}, {"max_refinements": 0}),
    "filter-ridge": Kind("filter", {}, {}, needs_ridge=True),
    "filter-flow": Kind("filter", {"filter": "gradient-flow", "time": 2.0}),
    "filter-descent": Kind("filter", {"filter": "gradient-descent", "num_iterations": 5}),
    "filter-cutoff": Kind("filter", {"filter": "cutoff", "threshold": 1e-3}),
    "filter-few": Kind("filter", {"num_directions": 1}, {}, needs_ridge=True),
    "softmax": Kind("logistic", {}, {"steps": 1}, needs_ridge=True),
    "sigmoid": Kind("logistic", {"loss": "sigmoid", "penalty": "coefficients"}, {"steps": 1}, needs_ridge=True),
    "falkon": Kind("falkon", {}, {"iterations": 2}),
    "eigenpro3": Kind("eigenpro3", {}, {"epochs": 1}),
    "eigenpro4": Kind("eigenpro4", {}, {"epochs": 1}),
    "eigenpro4-eigenpro2": Kind("eigenpro4", {"projection": "eigenpro2"}, {"epochs": 1}),
    "auto": Kind("auto"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def spread_diagonal():
    """k(x, x) from 1e-4 to 1e4."""
    scales = torch.logspace(-2, 2, N, dtype=torch.float64)
    return scales.unsqueeze(1) * rbf(N) * scales


def without_row():
    matrix = rbf(N)
    matrix[3], matrix[:, 3] = 0.0, 0.0
    return matrix


def wide():
    """A float32 kernel whose smallest eigenvalues are rounding errors of either sign."""
    points = torch.randn(N, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 30
    matrix = torch.exp(-torch.cdist(points, points).square())
    return ((matrix + matrix.T) / 2).float()


def far_from_zero():
    """A formula in float32 at samples whose mean is 100 times their spread."""
    points = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)) + 100
    return ntkpipe.closed_form_operator("laplace", points, bandwidth=3.0, block_rows=16)


def one_hard_column():
    """Two targets that the leading eigenvectors answer, and one that only the last one does."""
    vectors = torch.linalg.eigh(rbf(N))[1]
    return vectors[:, [-1, -2, 0]].contiguous()


def zero_among_others():
    y = targets(N)
    y[:, 1] = 0.0
    return y


UNITS = torch.tensor([1e-6, 1e6, 1e-200], dtype=torch.float64)

CASES = {
    "duplicates": lambda: (rbf(20).repeat(2, 2), targets(N), 1e-3),
    "duplicates-without-ridge": lambda: (rbf(20).repeat(2, 2), targets(N), 0.0),
    "indefinite": lambda: (rbf(N) - 0.9 * torch.eye(N, dtype=torch.float64), targets(N), 1e-3),
    "a-little-indefinite": lambda: (laplace(N) - 0.12 * torch.eye(N, dtype=torch.float64), targets(N), 1e-6),
    "negative": lambda: (-rbf(N), targets(N), 1e-3),
    "kernel-1e6": lambda: (1e6 * rbf(N), targets(N), 1e5),
    "kernel-1e-6": lambda: (1e-6 * rbf(N), targets(N), 1e-7),
    "kernel-1e200": lambda: (1e200 * rbf(N), targets(N), 1e199),
    "kernel-1e-200": lambda: (1e-200 * rbf(N), targets(N), 1e-201),
    "diagonal-of-all-sizes": lambda: (spread_diagonal(), targets(N), 1e-3),
    "ridge-below-float32": lambda: (wide(), targets(N), 1e-12),
    "float32-without-ridge": lambda: (wide(), targets(N), 0.0),
    "targets-of-all-units": lambda: (rbf(N), targets(N) * UNITS, 0.1),
    "targets-1e-310": lambda: (rbf(N), targets(N) * 1e-310, 0.1),
    "zero-targets": lambda: (rbf(N), torch.zeros(N, 3), 0.1),
    "zero-among-others": lambda: (rbf(N), zero_among_others(), 0.1),
    "one-sample": lambda: (torch.tensor([[2.0]]), torch.tensor([[1.0, 2.0, 0.0]]), 0.1),
    "two-samples": lambda: (rbf(2), targets(2), 0.1),
    "two-equal-samples-without-ridge": lambda: (torch.ones(2, 2), targets(2), 0.0),
    "constant": lambda: (torch.ones(N, N), targets(N), 1e-3),
    "constant-without-ridge": lambda: (torch.ones(N, N), targets(N), 0.0),
    "zero-row": lambda: (without_row(), targets(N), 1e-2),
    "zero-row-without-ridge": lambda: (without_row(), targets(N), 0.0),
    "zero": lambda: (torch.zeros(N, N), targets(N), 1e-2),
    "zero-without-ridge": lambda: (torch.zeros(N, N), targets(N), 0.0),
    "huge-ridge": lambda: (rbf(N), targets(N), 1e12),
    "ridge-1e200": lambda: (rbf(N), targets(N), 1e200),
    "ridge-1e-300": lambda: (rbf(10).repeat(4, 4), targets(N), 1e-300),
    "singular-without-ridge": lambda: (targets(N) @ targets(N).T, targets(N, seed=1), 0.0),
    "one-hard-column": lambda: (rbf(N), one_hard_column(), 1e-6),
    "far-from-zero": lambda: (far_from_zero(), targets(N), 1e-3),
}

OVERFLOW = {"kernel-1e200", "kernel-1e-200", "ridge-1e-300", "ridge-1e200"}
"""Cases in which products may overflow, which has to be said."""


def features_of(kernel: AbstractOperator, num: int | None = None) -> FeatureOperator:
    """Features whose Gram matrix is close to a kernel, of which negative eigenvalues are left out."""
    values, vectors = torch.linalg.eigh(kernel.dense().double())
    return FeatureOperator((vectors * values.clamp(min=0).sqrt())[:, -(num or len(values)) :])


def posed(kind, kernel, y):
    """The kernel, targets and options of a kind of solver."""
    operator = kernel if isinstance(kernel, AbstractOperator) else DenseOperator(kernel, block_rows=16)
    options = dict(kind.options)
    if kind.method == "gram":
        # Fewer features than samples for the path: the other side of the Gram matrix.
        operator = features_of(operator, max(1, operator.size // 2) if "ridges" in options else None)
    if kind.method == "logistic":
        y = (y > 0).double() if "loss" in options else one_hot_targets(y.argmax(dim=1), 3)
    if kind.method in ("falkon", "eigenpro3", "eigenpro4"):
        options["centres"] = max(1, operator.size // 2)
    return operator, y, options


def true_residuals(matrix, y, solution):
    """Residuals of the ridge system, how far rounding may move them, and energies, with targets in units of their own."""
    exponents = torch.frexp(y.abs().amax(dim=0)).exponent
    y, alpha = torch.ldexp(y, -exponents), torch.ldexp(solution.alpha, -exponents)
    norms = y.norm(dim=0).where(y.any(dim=0), 1.0)
    residuals = (matrix @ alpha + solution.ridge * alpha - y).norm(dim=0) / norms
    rounding = 1e-14 * (matrix.abs() @ alpha.abs() + solution.ridge * alpha.abs()).norm(dim=0) / norms
    energies = (alpha * (matrix @ alpha + solution.ridge * alpha)).sum(dim=0) / 2 - (alpha * y).sum(dim=0)
    return residuals, rounding, energies


def gains(matrix, y, solution, kind):
    """By how much what a method minimises is smaller than for zero."""
    fitted = matrix @ solution.alpha
    norms = (solution.alpha * (solution.alpha if "penalty" in kind.options else fitted)).sum(dim=0)
    if kind.method != "logistic":
        return ((2 * y - fitted) * fitted).sum(dim=0) - solution.ridge * norms
    sigmoid = torch.nn.functional.softplus
    losses = [
        sigmoid(f) - y * f if "loss" in kind.options else -(y * f.log_softmax(dim=1))
        for f in (torch.zeros_like(fitted), fitted)
    ]
    return (losses[0] - losses[1]).sum() - solution.ridge / 2 * norms.sum()


def assert_honest(solution, kind, operator, y):
    certificate, tolerance = solution.certificate, TOLERANCE.get(solution.method, 1e-4)
    matrix, y, worst = operator.dense().double(), y.double(), float(solution.residuals.max())
    for values in (solution.alpha, solution.fitted, solution.residuals):
        assert torch.isfinite(values).all()
    assert solution.status in STATUSES
    assert solution.converged or solution.status in certificate.flags
    assert not solution.converged or worst <= tolerance
    assert not solution.alpha[:, ~y.any(dim=0)].any() or kind.method == "logistic"
    if certificate.equation == "ridge":
        residuals, rounding, energies = true_residuals(matrix, y, solution)
        # Coefficients of targets below 1e-308 have fewer digits.
        assert bool(((solution.residuals - residuals).abs() <= 1e-6 * residuals + rounding + 1e-12).all())
        assert bool(((residuals <= 1 + 1e-9) | ((energies <= 0) & (residuals <= GROWTH))).all())
    elif certificate.equation in ("centres", "logistic"):
        scale = float(y.square().sum())
        assert bool((gains(matrix, y, solution, kind) >= -1e-9 * scale).all()) or worst <= 1 + 1e-9
    else:
        assert worst <= 1 + 1e-9


def assert_refused_or_honest(kind, case, extra):
    kernel, y, ridge = CASES[case]()
    operator, y, options = posed(kind, kernel, y)
    if kind.needs_ridge and ridge == 0:
        with pytest.raises(ConfigError, match="ridge"):
            solve(operator, y, method=kind.method, ridge=ridge, **options | extra)
        return
    try:
        solution = solve(operator, y, method=kind.method, ridge=ridge, **options | extra)
    except NumericalError as error:
        if case in OVERFLOW and "overflow" in str(error):
            return
        raise
    assert_honest(solution, kind, operator, y)


@pytest.mark.parametrize("case", CASES)
def test_degenerate_input_is_refused_or_answered_with_the_truth(kind, case):
    assert_refused_or_honest(kind, case, {})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.budget])
def test_a_budget_of_one_step_is_kept_and_told(name, case):
    assert_refused_or_honest(KINDS[name], case, KINDS[name].budget)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_bad_numbers_are_refused_with_their_place(kind, value):
    matrix = targets(N, columns=20) if kind.method == "gram" else rbf(N)
    matrix[3, 11] = value
    operator, y, options = posed(kind, rbf(N), targets(N))
    asked = {"method": kind.method, "ridge": 0.1, **options}
    what = "feature matrix" if kind.method == "gram" else "kernel matrix"
    with pytest.raises(NumericalError, match=f"{what} is NaN or infinite at row 3, column 11"):
        solve(matrix, y, **asked)
    features, bad_y = targets(N), y.clone()
    features[2, 1], bad_y[17, 2] = value, value
    with pytest.raises(NumericalError, match="feature matrix is NaN or infinite at row 2, column 1"):
        solve(features, y, **asked)
    with pytest.raises(NumericalError, match="y is NaN or infinite at row 17, column 2"):
        solve(operator, bad_y, **asked)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.method != "gram"])
def test_a_bad_entry_of_a_tile_is_refused_with_its_place_in_the_matrix(name):
    kind, matrix = KINDS[name], rbf(N)
    matrix[30, 5] = float("nan")
    matrix[5, 30] = float("nan")
    _, y, options = posed(kind, rbf(N), targets(N))
    if "centres" in options:
        options["centres"] = N  # Others need not read the entry.
    with pytest.raises(NumericalError, match=r"kernel matrix is NaN or infinite at row (30, column 5|5, column 30)"):
        solve(BlockedOperator(ArrayTiles(matrix.numpy(), 16)), y, method=kind.method, ridge=0.1, **options)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.method != "gram"])
def test_a_kernel_that_is_not_symmetric_is_refused(name):
    kind, matrix = KINDS[name], rbf(N)
    matrix[4, 2] += 0.1
    _, y, options = posed(kind, rbf(N), targets(N))
    with pytest.raises(NumericalError, match=r"not symmetric: K\[2, 4\]"):
        solve(matrix, y, method=kind.method, ridge=0.1, **options)


@pytest.mark.parametrize("method", ["falkon", "eigenpro3", "eigenpro4"])
@pytest.mark.parametrize("case", ["duplicates-without-ridge", "indefinite", "constant", "zero", "one-hard-column"])
def test_models_on_given_centres_are_honest(method, case):
    kernel, y, ridge = CASES[case]()
    centres, kind = torch.arange(0, N, 3), Kind(method)
    matrix = kernel.double()
    solution = fit_centres(DenseOperator(kernel, block_rows=16), y, centres=centres, method=method, ridge=ridge)
    between_NP, fitted = matrix[:, centres], matrix[:, centres] @ solution.alpha
    gradient = between_NP.T @ (fitted - y) + ridge * fitted[centres]
    norms = (between_NP.T @ y).norm(dim=0)
    residuals = gradient.norm(dim=0) / norms.where(norms > 0, 1.0)
    torch.testing.assert_close(solution.residuals, residuals, rtol=1e-2, atol=1e-9)
    assert solution.status in STATUSES
    assert not solution.converged or float(residuals.max()) <= TOLERANCE.get(kind.method, 1e-4)
    lost = (fitted - y).square().sum(dim=0) + ridge * (solution.alpha * fitted[centres]).sum(dim=0)
    assert bool((lost <= y.square().sum(dim=0) * (1 + 1e-9)).all())


def test_bad_targets_of_given_centres_are_refused_with_their_place():
    y = targets(N)
    y[7, 0] = float("inf")
    with pytest.raises(NumericalError, match="y is NaN or infinite at row 7, column 0"):
        fit_centres(DenseOperator(rbf(N)), y, centres=range(5))


def test_coefficients_beyond_float64_are_refused():
    y = targets(N)
    with pytest.raises(NumericalError, match="exceed the largest number"):
        solve(1e-3 * rbf(N), y / y.abs().max() * 1.7e308, method="cholesky", ridge=1e-4)


def test_a_ridge_that_was_selected_is_the_one_that_is_judged():
    features = targets(N, columns=5)
    selected = solve(features, targets(N), method="gram", ridge=1e-30, ridges=(0.1, 1.0), select="gcv")
    assert selected.ridge >= 0.1
    assert "ridge-below-precision" not in selected.certificate.flags
    asked = solve(features, targets(N), method="gram", ridge=1e-30)
    assert "ridge-below-precision" in asked.certificate.flags
    assert not asked.converged
    assert float(asked.residuals.max()) <= 1


@pytest.mark.parametrize("unit", [1e-200, 1e-30, 1.0, 1e30, 1e200])
def test_extreme_eigenvalues_are_found_in_any_unit(unit):
    factor = torch.linalg.cholesky(unit * laplace(N))
    values = torch.linalg.eigvalsh(laplace(N))
    largest, smallest = extreme_eigenvalues(factor)
    assert 0.9 * float(values[-1]) <= largest / unit <= 1.0001 * float(values[-1])
    assert 0.9999 * float(values[0]) <= smallest / unit <= 2 * float(values[0])


def test_a_posterior_sees_no_units_of_targets_and_refuses_bad_ones():
    y = targets(N)
    for method in ("exact", "lanczos"):
        plain = posterior(rbf(N), y, 0.1, method=method, rank=5)
        small = posterior(rbf(N), 2.0**-660 * y, 0.1, method=method, rank=5)
        torch.testing.assert_close(small.residuals_T, plain.residuals_T, rtol=1e-6, atol=1e-14)
    y[3, 1] = float("nan")
    with pytest.raises(NumericalError, match="row 3, column 1"):
        posterior(rbf(N), y, 0.1)


def test_what_is_not_finite_is_never_returned():
    class Overflowing:
        """A solver whose last step overflows."""

        method, equation, state_type, linear = "overflowing", "ridge", SolverState, True

        def init(self, system):
            return SolverState(alpha_NT=torch.full_like(system.rhs_NT, torch.inf), status="converged")

        def certify(self, system, state):
            return solver_of("cholesky").certify(system, state)

    loop = SolveLoop(Overflowing(), make_system(DenseOperator(rbf(5)), targets(5), 0.1))
    with pytest.raises(NumericalError, match="coefficients of overflowing are NaN or infinite"):
        loop.solution(loop.run())


@pytest.mark.parametrize("name", ["gram-loo", "filter-few", "sigmoid", "falkon", "eigenpro4-eigenpro2"])
def test_a_solve_that_was_killed_at_its_end_is_certified_alike(name):
    kind = KINDS[name]
    operator, y, options = posed(kind, laplace(N), targets(N))
    checkpoint, solver = MemoryCheckpoint(), solver_of(kind.method, **options)
    whole = solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
    again = solve_operator(solver, operator, y, 0.1, checkpoint=checkpoint, checkpoint_seconds=0.0)
    assert torch.equal(again.alpha, whole.alpha)
    assert torch.equal(again.residuals, whole.residuals)
    assert again.extras.keys() == whole.extras.keys()
    assert all(torch.equal(again.extras[name], value) for name, value in whole.extras.items())
