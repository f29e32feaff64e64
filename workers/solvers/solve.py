"""Solving kernel systems: the loop around a solver, and the library function over it."""

import math
import time
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve import CholeskySolve, EigenProSolve, SolveBase
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.checks import check_finite
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.base import AbstractSolver
from ntkpipe.workers.solvers.certificate import relative_residuals
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.solution import Solution

Matrix = torch.Tensor | npt.NDArray[Any]
RidgeScale = Literal["absolute", "mean-diagonal"]

CHOLESKY_LIMIT = 20_000
"""Up to this N a factorisation is the fastest and surest way."""

SECTIONS: dict[str, type[CholeskySolve | EigenProSolve]] = {"cholesky": CholeskySolve, "eigenpro2": EigenProSolve}


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
            square is taken for a kernel matrix, so pass ``FeatureOperator(features)`` if K may equal N.
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
    if method == "auto":
        method = "cholesky" if operator.size <= CHOLESKY_LIMIT else "eigenpro2"
    if method not in SECTIONS:
        raise ConfigError(unknown_name("method", method, ["auto", *SECTIONS]))
    valid = SECTIONS[method].model_fields.keys() - SolveBase.model_fields.keys() - {"kind"}
    for option in options:
        if option not in valid:
            raise ConfigError(unknown_name(f"option of {method}", option, valid))
    try:
        section = SECTIONS[method](name="solve", kernel="kernel", ridge=ridge, ridge_scale=ridge_scale, **options)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        place = ".".join(map(str, finding["loc"]))
        raise ConfigError(f"solve: {place}: {finding['msg']} (found {finding['input']!r})") from None
    return solve_operator(make_solver(section), operator, targets_NT, scaled_ridge(operator, ridge, ridge_scale))


def solve_operator(
    solver: AbstractSolver[Any], operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float
) -> Solution:
    """Run a solver to its end and recompute the residuals of what it returns; one extra pass over the matrix.

    Every target is scaled by a power of two beforehand, which costs no accuracy, so that no solver sees the targets'
    units.

    Raises:
        ConfigError: The targets are not (N, T) with T >= 1, or the ridge is negative or not finite.
        NumericalError: The targets or the matrix hold NaN or infinity.
    """
    if rhs_NT.dim() != 2 or len(rhs_NT) != operator.size or not rhs_NT.shape[1]:
        raise ConfigError(
            f"the kernel has {operator.size} samples, but the targets have shape {tuple(rhs_NT.shape)}; expected "
            f"({operator.size}, T) with T >= 1."
        )
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ConfigError(f"expected a finite ridge of at least 0, found {ridge:g}.")
    check_finite("y", rhs_NT)
    started = time.perf_counter()
    exponents_T = torch.frexp(rhs_NT.double().abs().amax(dim=0)).exponent
    scaled_NT = torch.ldexp(rhs_NT.double(), -exponents_T)
    state = solver.init(operator, scaled_NT, ridge)
    while state.status is None:
        state = solver.step(operator, scaled_NT, ridge, state)
    residuals_T = relative_residuals(operator, ridge, state.alpha_NT, scaled_NT)
    return Solution(
        alpha=torch.ldexp(state.alpha_NT, exponents_T),
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


def one_hot_targets(labels_N: torch.Tensor, num_classes: int | None = None) -> torch.Tensor:
    """Return (N, T) float64 targets: 1 in the column of the class, 0 elsewhere.

    Args:
        labels_N: Classes as integers from 0.
        num_classes: T; one more than the largest label if not given.

    Raises:
        ConfigError: The labels are not (N,) integers from 0 to T - 1.
    """
    if labels_N.dim() != 1 or not len(labels_N) or labels_N.is_floating_point() or labels_N.is_complex():
        raise ConfigError(
            f"expected (N,) integer class labels, found shape {tuple(labels_N.shape)} of {labels_N.dtype}."
        )
    labels_N = labels_N.long()
    lowest, highest = int(labels_N.min()), int(labels_N.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        expected = "at least 0" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise ConfigError(f"expected class labels {expected}, found {lowest} to {highest}.")
    return torch.nn.functional.one_hot(labels_N, num_classes or highest + 1).double()


def _tensor(name: str, values: Matrix) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(values)) if isinstance(values, np.ndarray) else values
    if not isinstance(tensor, torch.Tensor):
        raise ConfigError(f"{name} must be a tensor or an array, found {type(values).__name__}.")
    if tensor.is_complex():
        raise ConfigError(f"{name} must be real, found {tensor.dtype}.")
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return tensor.double()
    # Half precision is exact in float32, in which there are fast products.
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _operator(matrix: torch.Tensor) -> AbstractOperator:
    if matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1]:
        return DenseOperator(matrix)
    return FeatureOperator(matrix)
