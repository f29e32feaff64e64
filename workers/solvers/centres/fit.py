"""Models on centres that need not be samples, as a library function."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_solve
from ntkpipe.configs.solve.centres import EigenPro3Solve, EigenPro4Solve, FalkonSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.arrays import Matrix, as_columns
from ntkpipe.workers.solvers.base import AbstractSolver
from ntkpipe.workers.solvers.centres.eigenpro import CentreEigenProSolver
from ntkpipe.workers.solvers.centres.falkon import FalkonSolver
from ntkpipe.workers.solvers.centres.normal import Points
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.solve import scaled_ridge, solve_operator

Positions = torch.Tensor | npt.NDArray[np.int64] | range


def fit_centres(
    operator: AbstractOperator,
    y: Matrix,
    *,
    centres: Positions,
    samples: Positions | None = None,
    method: Literal["falkon", "eigenpro3", "eigenpro4"] = "falkon",
    ridge: float = 1e-3,
    ridge_scale: Literal["absolute", "mean-diagonal"] = "absolute",
    **options: Any,
) -> Solution:
    """Fit f(x) = sum_p K(x, z_p) a_p, minimising sum_n (f(x_n) - y_n)^2 + ridge a^T K_PP a.

    Centres that are no samples are stacked with them: for P points ``z`` and N samples ``x``,
    ``fit_centres(closed_form_operator("laplace", torch.cat([z, x]), bandwidth=10.0), y, centres=range(P),
    samples=range(P, P + N))``. Only entries between samples and centres, among centres, and for the EigenPro methods
    among samples of a block are computed.

    Args:
        operator: The kernel matrix of all points.
        y: (N,) or (N, T) targets of the samples.
        centres: Positions of the P centres.
        samples: Positions of the N samples; all by default. A point may be both.
        method: The solver.
        ridge: The lambda, at least 0.
        ridge_scale: ``mean-diagonal`` multiplies it by the mean of the operator's diagonal.
        options: Further settings of the method, such as ``iterations``.

    Returns:
        (P, T) coefficients of the centres in the order they were given, predictions at the samples, and residuals of the
        normal equations.

    Raises:
        ConfigError: Positions, targets, the method or an option are not valid.
        NumericalError: The kernel or the targets hold NaN or infinity.
    """
    centres_P = _positions("centres", centres, operator.size)
    samples_N = torch.arange(operator.size) if samples is None else _positions("samples", samples, operator.size)
    targets_NT = as_columns("y", y)
    if targets_NT.dim() != 2 or len(targets_NT) != len(samples_N):
        raise ConfigError(f"expected ({len(samples_N)}, T) targets, found shape {tuple(targets_NT.shape)}.")
    if "centres" in options:
        raise ConfigError("centres are positions here, not a number.")
    section = load_solve(method, {"ridge": ridge, "ridge_scale": ridge_scale, "centres": len(centres_P), **options})
    points = Points(centres_P, samples_N)
    solver: AbstractSolver[Any]
    if isinstance(section, FalkonSolve):
        solver = FalkonSolver(section, points)
    elif isinstance(section, EigenPro3Solve | EigenPro4Solve):
        solver = CentreEigenProSolver(section, points)
    else:
        raise ConfigError(f"{method!r} does not fit centres; use 'falkon', 'eigenpro3' or 'eigenpro4'.")
    rhs_LT = targets_NT.new_zeros(operator.size, targets_NT.shape[1])
    rhs_LT[samples_N] = targets_NT
    solution = solve_operator(solver, operator, rhs_LT, scaled_ridge(operator, ridge, ridge_scale))
    return replace(solution, alpha=solution.alpha[centres_P], fitted=solution.fitted[samples_N])


def _positions(what: str, positions: Positions, size: int) -> torch.Tensor:
    found = torch.as_tensor(list(positions) if isinstance(positions, range) else positions)
    valid = found.dim() == 1 and len(found) > 0 and not found.is_floating_point() and found.dtype != torch.bool
    if not valid or int(found.min()) < 0 or int(found.max()) >= size or len(torch.unique(found)) < len(found):
        raise ConfigError(f"expected {what} to be distinct positions from 0 to {size - 1}, found {found}.")
    return found.long()
