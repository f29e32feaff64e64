"""Solving kernel systems: the library function, and what it shares with runs."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_solve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.base import AbstractSolver
from ntkpipe.workers.solvers.loop import CHECKPOINT_SECONDS, AbstractCheckpoint, EarlyStopping, Position, SolveLoop
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.scaling import Scaling
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.validation import Validation

Matrix = torch.Tensor | npt.NDArray[Any]
RidgeScale = Literal["absolute", "mean-diagonal"]

CHOLESKY_LIMIT = 20_000
"""Up to this N a factorisation is the fastest and surest way."""


def solve(
    kernel: Matrix | AbstractOperator,
    y: Matrix,
    *,
    method: str = "auto",
    ridge: float = 1e-3,
    ridge_scale: RidgeScale = "absolute",
    sample_weights: Matrix | None = None,
    warm_start: Matrix | None = None,
    validation: Validation | None = None,
    **options: Any,
) -> Solution:
    """Solve (K + ridge I) alpha = y.

    Args:
        kernel: (N, N) kernel matrix, an operator, or (N, K) features whose Gram matrix is the kernel; a matrix that is
            square is taken for a kernel matrix, so pass ``FeatureOperator(features)`` if K may equal N.
        y: (N,) or (N, T) targets.
        method: ``auto``, or the kind of a solver; ``ntkpipe schema`` lists them with their options.
        ridge: The lambda, at least 0.
        ridge_scale: ``mean-diagonal`` multiplies it by tr(K)/N.
        sample_weights: (N,) weights of the squared errors, at least 0; (K + ridge W^-1) alpha = y is solved instead.
        warm_start: (N,) or (N, T) coefficients to start from.
        validation: Samples that are held out, on which the solve may be stopped early.
        options: Further settings of the method, such as ``epochs``.

    Returns:
        Coefficients with their recomputed residuals. A solver that did not converge says so in ``status``; it never
        raises for it and never hides it.

    Raises:
        ConfigError: Shapes, the method or an option are not valid.
        NumericalError: The kernel or the targets hold NaN or infinity, or the matrix is not symmetric.
    """
    operator = kernel if isinstance(kernel, AbstractOperator) else _operator(_tensor("kernel", kernel))
    targets_NT = _columns("y", y)
    if method == "auto":
        method = "cholesky" if operator.size <= CHOLESKY_LIMIT else "eigenpro2"
    section = load_solve(method, {"ridge": ridge, "ridge_scale": ridge_scale, **options})
    return solve_operator(
        make_solver(section),
        operator,
        targets_NT,
        scaled_ridge(operator, ridge, ridge_scale),
        weights_N=None if sample_weights is None else _tensor("sample_weights", sample_weights).double(),
        start_NT=None if warm_start is None else _columns("warm_start", warm_start),
        validation=validation,
    )


def solve_operator(
    solver: AbstractSolver[Any],
    operator: AbstractOperator,
    rhs_NT: torch.Tensor,
    ridge: float,
    *,
    weights_N: torch.Tensor | None = None,
    start_NT: torch.Tensor | None = None,
    validation: Validation | None = None,
    checkpoint: AbstractCheckpoint | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    observe: Callable[[Position], None] | None = None,
) -> Solution:
    """Run a solver to its end and recompute the residuals of what it returns; one extra pass over the matrix.

    Every target is scaled by a power of two beforehand, which costs no accuracy, so that no solver sees the targets'
    units; weights and starts cost one more pass each.

    Args:
        solver: Takes the steps.
        operator: K.
        rhs_NT: y.
        ridge: In the units of K.
        weights_N: Of the samples, at least 0.
        start_NT: Coefficients to start from.
        validation: Samples that are held out.
        checkpoint: Keeps positions, of a solve that may be killed.
        checkpoint_seconds: Between two positions that are kept.
        observe: Is told every position.

    Raises:
        ConfigError: The targets are not (N, T) with T >= 1, the ridge is negative or not finite, or weights, start or
            held-out samples do not fit.
        NumericalError: The targets, the start or the matrix hold NaN or infinity.
    """
    scaling = Scaling.of(operator, rhs_NT, ridge, weights_N=weights_N, start_NT=start_NT)
    early_stopping = None
    if validation is not None:
        validation.check(operator.size, rhs_NT.shape[1])
        early_stopping = EarlyStopping(lambda solved_NT: validation.loss(scaling.alpha(solved_NT)), validation.patience)
    loop = SolveLoop(
        solver,
        scaling.system,
        checkpoint=checkpoint,
        early_stopping=early_stopping,
        checkpoint_seconds=checkpoint_seconds,
        observe=observe,
    )
    return scaling.undo(loop.solution(loop.run()))


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


def _columns(name: str, values: Matrix) -> torch.Tensor:
    tensor = _tensor(name, values).double()
    return tensor.unsqueeze(1) if tensor.dim() == 1 else tensor


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
