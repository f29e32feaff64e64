"""Solving kernel systems: the library function, and what it shares with runs."""

import os
from collections.abc import Callable
from typing import Any, Literal, final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_solve
from ntkpipe.configs.solve.auto import AutoSolve
from ntkpipe.configs.solve.base import SolveBase
from ntkpipe.configs.solve.union import SolveConfig
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.operators.features import FeatureOperator
from ntkpipe.workers.solvers.arrays import Matrix, as_columns, as_tensor
from ntkpipe.workers.solvers.base import AbstractSolver
from ntkpipe.workers.solvers.choice import choose
from ntkpipe.workers.solvers.loop import CHECKPOINT_SECONDS, AbstractCheckpoint, EarlyStopping, Position, SolveLoop
from ntkpipe.workers.solvers.prediction import Machine, Problem
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.scaling import Scaling, checked_weights
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.validation import Validation
from ntkpipe.workers.solvers.watcher import Watcher

RidgeScale = Literal["absolute", "mean-diagonal"]


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
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> Solution:
    """Solve (K + ridge I) alpha = y.

    Args:
        kernel: (N, N) kernel matrix, an operator, or (N, K) features whose Gram matrix is the kernel; a matrix that is
            square is taken for a kernel matrix, so pass ``FeatureOperator(features)`` if K may equal N.
        y: (N,) or (N, T) targets.
        method: ``auto``, a factorisation that fits half of the memory, else the solver predicted to be quickest; or the
            kind of a solver; ``ntkpipe schema`` lists them with their options.
        ridge: The lambda, at least 0.
        ridge_scale: ``mean-diagonal`` multiplies it by tr(K)/N, or the weighted mean where samples have weights.
        sample_weights: (N,) weights of the squared errors, at least 0; (K + ridge W^-1) alpha = y is solved instead. A
            weight of 2 is a sample that is there twice, one of 0 is a sample that is not there.
        warm_start: (N,) or (N, T) coefficients to start from; a target for which they are worse than zero starts from
            zero.
        validation: Samples that are held out, on which the solve may be stopped early.
        report: Is told which solver was chosen and why, and every few seconds how far it is and how long it will take;
            ``print`` will do.
        options: Further settings of the method, such as ``epochs``.

    Returns:
        Coefficients with their recomputed residuals. A solver that did not converge says so in ``status``; it never
        raises for it and never hides it.

    Raises:
        ConfigError: Shapes, the method or an option are not valid.
        PlanError: ``auto`` finds no solver that fits the memory.
        NumericalError: The kernel or the targets hold NaN or infinity, or the matrix is not symmetric.
    """
    operator = kernel if isinstance(kernel, AbstractOperator) else _operator(as_tensor("kernel", kernel))
    targets_NT = as_columns("y", y)
    weights_N = None
    if sample_weights is not None:
        weights_N = checked_weights(as_tensor("sample_weights", sample_weights), operator.size)
    asked = load_solve(method, {"ridge": ridge, "ridge_scale": ridge_scale, **options})
    absolute = scaled_ridge(operator, ridge, ridge_scale, weights_N)
    section = asked
    if isinstance(asked, AutoSolve):
        problem = _problem(operator, targets_NT.shape[-1], absolute)
        section = _chosen(asked, problem, report, stops_early=validation is not None)
    solver = make_solver(section)
    watcher = None
    if report is not None:
        tell = report
        watcher = Watcher(solver, operator, getattr(section, "tolerance", None), lambda found: tell(str(found)))
    return solve_operator(
        solver,
        operator,
        targets_NT,
        absolute,
        weights_N=weights_N,
        start_NT=None if warm_start is None else as_columns("warm_start", warm_start),
        validation=validation,
        observe=None if watcher is None else watcher.observe,
    )


@final
class Solve:
    """One solve: what is asked, turned into a system, and the loop that solves it.

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

    Attributes:
        loop: Takes the steps.

    Raises:
        ConfigError: The targets are not (N, T) with T >= 1, the ridge is negative or not finite, or weights, start or
            held-out samples do not fit.
        NumericalError: The targets, the start or the matrix hold NaN or infinity.
    """

    def __init__(
        self,
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
    ) -> None:
        scale = Scaling.of if solver.linear else Scaling.none
        scaling = scale(operator, rhs_NT, ridge, weights_N=weights_N, start_NT=start_NT)
        early_stopping = None
        if validation is not None:
            held_out = validation.prepared(operator.size, rhs_NT.shape[1])
            early_stopping = EarlyStopping(
                lambda solved_NT: held_out.loss(scaling.alpha(solved_NT)),
                validation.patience,
                from_start=start_NT is not None,
            )
        self._scaling = scaling
        self.loop = SolveLoop(
            solver,
            scaling.system,
            checkpoint=checkpoint,
            early_stopping=early_stopping,
            checkpoint_seconds=checkpoint_seconds,
            observe=observe,
        )

    def run(self) -> Solution:
        """Take all steps that are left, and recompute the residuals; one more pass over the matrix."""
        return self._scaling.undo(self.loop.solution(self.loop.run()))


def solve_operator(
    solver: AbstractSolver[Any], operator: AbstractOperator, rhs_NT: torch.Tensor, ridge: float, **options: Any
) -> Solution:
    """Run a solver to its end, see :class:`Solve`."""
    return Solve(solver, operator, rhs_NT, ridge, **options).run()


def _chosen(
    asked: AutoSolve, problem: Problem, report: Callable[[str], None] | None, *, stops_early: bool
) -> SolveConfig:
    choice = choose(asked, problem, Machine(_memory_bytes()), stops_early=stops_early)
    if report is not None:
        report(choice.why)
    return choice.section


def _problem(operator: AbstractOperator, num_targets: int, ridge: float) -> Problem:
    tags = operator.tags
    mean = float(operator.diagonal().double().mean())
    return Problem(
        size=operator.size,
        num_targets=num_targets,
        itemsize=operator.dtype.itemsize,
        num_features=None if tags.features is None else tags.features.shape[1],
        entry_flops=tags.entry_flops,
        entry_bytes=tags.entry_bytes,
        relative_ridge=ridge / mean if mean > 0 else 0.0,
    )


def _memory_bytes() -> float:
    """Return half of the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def scaled_ridge(
    operator: AbstractOperator, ridge: float, scale: RidgeScale, weights_N: torch.Tensor | None = None
) -> float:
    """Return the ridge in the units of the matrix."""
    if scale == "absolute":
        return ridge
    diagonal_N = operator.diagonal().double()
    if weights_N is None:
        return ridge * float(diagonal_N.mean())
    return ridge * float(weights_N @ diagonal_N / weights_N.sum())


def balanced_weights(targets_NT: torch.Tensor) -> torch.Tensor:
    """Return (N,) weights of samples with one-hot targets, N / (classes present times samples of the class)."""
    counts_T = targets_NT.sum(dim=0)
    weights_T = len(targets_NT) / (int((counts_T > 0).sum()) * counts_T.clamp(min=1))
    return targets_NT @ weights_T


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


def targets_of(solve: SolveBase, labels: torch.Tensor, num_targets: int) -> torch.Tensor:
    """Return the (N, T) float64 targets that a section asks for: one-hot classes, or labels as they are.

    Raises:
        ConfigError: One-hot targets are asked for, and labels are not (N,) integers from 0 to T - 1.
    """
    if solve.targets == "one-hot":
        return one_hot_targets(labels, num_targets)
    return labels.double().reshape(len(labels), -1)


def _operator(matrix: torch.Tensor) -> AbstractOperator:
    if matrix.dim() == 2 and matrix.shape[0] == matrix.shape[1]:
        return DenseOperator(matrix)
    return FeatureOperator(matrix)
