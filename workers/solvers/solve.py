"""Solving kernel systems: the loop around a solver, and the library function over it."""

import time
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve import CholeskySolve, EigenProSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.dense import DenseOperator, check_finite
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.base import AbstractSolver
from ntkpipe.workers.solvers.certificate import relative_residuals
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.solution import Solution

Matrix = torch.Tensor | npt.NDArray[Any]
RidgeScale = Literal["absolute", "mean-diagonal"]

CHOLESKY_LIMIT = 20_000
"""Up to this N a factorisation is the fastest and surest way."""


def solve(
    kernel: Matrix | AbstractOperator,
    y: Matrix,
    *,
    method: Literal["auto", "cholesky", "eigenpro2"] = "auto",
    ridge: float = 1e-3,
    ridge_scale: RidgeScale = "absolute",
    **options: Any,
) -> Solution:
    """Solve (K + ridge I) alpha = y.

    Args:
        kernel: (N, N) kernel matrix, an operator, or (N, K) features whose Gram matrix is the kernel; a matrix that is
            square is taken for a kernel matrix.
        y: (N,) or (N, T) targets.
        method: ``auto`` is ``cholesky`` up to N = 20,000 and ``eigenpro2`` beyond.
        ridge: The lambda, at least 0.
        ridge_scale: ``mean-diagonal`` multiplies it by tr(K)/N.
        options: Further settings of the method, such as ``epochs``; see ntkpipe.configs.solve.

    Returns:
        Coefficients with their recomputed residuals. A solver that did not converge says so in ``status``; it never
        raises for it and never hides it.

    Raises:
        ConfigError: Shapes, the method or an option are not valid.
        NumericalError: The kernel or the targets hold NaN or infinity, or the matrix is not symmetric.
    """
    operator = kernel if isinstance(kernel, AbstractOperator) else _operator(_tensor("kernel", kernel))
    targets = _tensor("y", y).double()
    targets_NT = targets.unsqueeze(1) if targets.dim() == 1 else targets
    if targets_NT.dim() != 2 or len(targets_NT) != operator.size:
        raise ConfigError(f"the kernel has {operator.size} samples, but y has shape {tuple(targets.shape)}.")
    check_finite("y", targets_NT)
    if method == "auto":
        method = "cholesky" if operator.size <= CHOLESKY_LIMIT else "eigenpro2"
    sections: dict[str, type[CholeskySolve | EigenProSolve]] = {"cholesky": CholeskySolve, "eigenpro2": EigenProSolve}
    if method not in sections:
        raise ConfigError(unknown_name("method", method, ["auto", *sections]))
    try:
        section = sections[method](name="solve", kernel="kernel", ridge=ridge, ridge_scale=ridge_scale, **options)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        raise ConfigError(f"solve: {'.'.join(map(str, finding['loc']))}: {finding['msg']}") from None
    return solve_operator(make_solver(section), operator, targets_NT, scaled_ridge(operator, ridge, ridge_scale))


def solve_operator(
    solver: AbstractSolver[Any], operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float
) -> Solution:
    """Run a solver to its end and recompute the residuals of what it returns; one extra pass over the matrix."""
    started = time.perf_counter()
    state = solver.init(operator, rhs_NT, ridge)
    while state.status is None:
        state = solver.step(operator, rhs_NT, ridge, state)
    residuals_T = relative_residuals(operator, ridge, state.alpha_NT, rhs_NT)
    return Solution(
        alpha=state.alpha_NT,
        ridge=ridge,
        jitter=state.jitter,
        residuals=residuals_T,
        status=state.status,
        method=solver.method,
        stats={
            "steps": float(state.steps),
            "passes": state.passes + 1,
            "seconds": time.perf_counter() - started,
        },
    )


def scaled_ridge(operator: AbstractOperator, ridge: float, scale: RidgeScale) -> float:
    """Return the ridge in the units of the matrix."""
    return ridge if scale == "absolute" else ridge * float(operator.diagonal().double().mean())


def one_hot_targets(labels_N: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return (N, T) float64 targets: 1 in the column of the class, 0 elsewhere."""
    return torch.nn.functional.one_hot(labels_N, num_classes).double()


def _tensor(name: str, values: Matrix) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"{name} must be a tensor or an array, found {type(values).__name__}.")
    return tensor.detach().cpu() if tensor.is_floating_point() else tensor.cpu().double()


def _operator(matrix: torch.Tensor) -> AbstractOperator:
    if matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1]:
        return DenseOperator(matrix)
    return FeatureOperator(matrix)
