"""What is asked of solvers: the floor, ntkpipe's through its public function only, and those of other packages."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import ntkpipe
from benchmarks.solver_problems import Problem
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.features import FeatureOperator

FLOOR_ROWS = 4096
"""Rows of features in a product of the floor."""

PREDICTED_ROWS = 500
"""Rows that are converted to float64, or computed, at a time."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """What a job may look at."""

    inputs_ND: torch.Tensor
    """Of features, the features."""
    targets_NT: torch.Tensor
    """Float64."""
    kernel_NN: torch.Tensor | AbstractOperator | None
    """Float32, in memory or in tiles on disk; None of features."""

    def head(self, num: int) -> "Arrays":
        """Return the same of the first samples, in memory, to warm up on."""
        num = min(num, len(self.inputs_ND))
        kernel_NN = self.kernel_NN
        if isinstance(kernel_NN, AbstractOperator):
            kernel_NN = kernel_NN.rows(0, num)
        kernel_NN = None if kernel_NN is None else kernel_NN[:num, :num].contiguous()
        return Arrays(self.inputs_ND[:num].contiguous(), self.targets_NT[:num].contiguous(), kernel_NN)

    @property
    def kernel(self) -> torch.Tensor:
        """The kernel matrix, of a problem that has one in memory."""
        assert isinstance(self.kernel_NN, torch.Tensor)
        return self.kernel_NN


@dataclass(frozen=True, slots=True)
class Found:
    """What a solver returns; whatever it cannot say is None."""

    alpha_NT: torch.Tensor | None = None
    """Coefficients of the kernel that was asked for."""
    weights_KT: torch.Tensor | None = None
    """Of features."""
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None
    """From (M, D) test inputs to (M, T), of a solver that has neither."""
    status: str = ""
    """What it says of itself."""
    passes: float | None = None
    """Over the kernel, or the features."""
    ridge: float | None = None
    """That it chose."""
    note: str = ""
    """Anything else."""


Call = Callable[[Arrays, Problem], Found]


@dataclass(frozen=True, slots=True)
class SolverJob:
    """One solver with its settings."""

    name: str
    """How the report calls it."""
    call: Call
    """What is timed."""
    needs: tuple[str, ...] = ()
    """Packages to import."""
    is_floor: bool = False
    """What the others are compared with."""


def ours(name: str, method: str, **options: Any) -> SolverJob:
    """Return a job for one of ntkpipe's solvers."""
    return SolverJob(name, partial(_ours, method=method, options=options))


def _ours(arrays: Arrays, problem: Problem, *, method: str, options: dict[str, Any]) -> Found:
    system = FeatureOperator(arrays.inputs_ND) if arrays.kernel_NN is None else arrays.kernel_NN
    solution = ntkpipe.solve(system, arrays.targets_NT, method=method, ridge=problem.ridge, **options)
    chose = solution.extras.get("path_ridges") is not None and options.get("select", "none") != "none"
    return Found(
        alpha_NT=solution.alpha,
        weights_KT=solution.extras.get("weights"),
        status=solution.status,
        passes=solution.certificate.passes,
        ridge=solution.ridge if chose else None,
        note=f"chose {solution.method}" if method == "auto" else "",
    )


def cholesky_floor(arrays: Arrays, problem: Problem) -> Found:
    """Factorise in float32 and solve once; nothing is checked."""
    shifted_NN = arrays.kernel.clone()
    shifted_NN.diagonal().add_(problem.ridge)
    factor_NN = torch.linalg.cholesky(shifted_NN)
    return Found(alpha_NT=torch.cholesky_solve(arrays.targets_NT.float(), factor_NN))


def gram_floor(arrays: Arrays, problem: Problem) -> Found:
    """Multiply float32 features with themselves, some rows at a time, and find the eigenpairs of that in float64."""
    features_NK = arrays.inputs_ND
    gram_KK = features_NK.new_zeros(features_NK.shape[1], features_NK.shape[1])
    for block_MK in features_NK.split(FLOOR_ROWS):
        gram_KK.addmm_(block_MK.T, block_MK)
    values_K, vectors_KK = torch.linalg.eigh(gram_KK.double())
    projected_KT = vectors_KK.T @ (features_NK.T @ arrays.targets_NT.float()).double()
    return Found(weights_KT=vectors_KK @ (projected_KT / (values_K[:, None] + problem.ridge)))


@dataclass(frozen=True, slots=True)
class Judged:
    """How good a solution is, by the same measure for all."""

    residual: float | None
    """||(K + ridge I) alpha - y|| / ||y|| in float64, of the worst target; of features, of the weights' equation."""
    error: float
    """The share of wrong classes, or the root of the mean square error."""


def judge(
    found: Found, arrays: Arrays, problem: Problem, test_inputs_MD: torch.Tensor, truth_MT: torch.Tensor
) -> Judged:
    """Compare a solution with the system and with what is true of the test samples."""
    residual = None
    if found.predict is not None:
        predictions_MT = found.predict(test_inputs_MD)
    elif found.weights_KT is not None:
        predictions_MT = test_inputs_MD.double() @ found.weights_KT.double()
        ridge = problem.ridge if found.ridge is None else found.ridge
        residual = _weights_residual(arrays, found.weights_KT.double(), ridge)
    else:
        assert found.alpha_NT is not None
        alpha_NT = found.alpha_NT.double()
        predictions_MT = torch.cat(
            [
                ntkpipe.closed_form("laplace", rows_BD, arrays.inputs_ND, bandwidth=problem.bandwidth).double()
                @ alpha_NT
                for rows_BD in test_inputs_MD.split(PREDICTED_ROWS)
            ]
        )
        residual = _kernel_residual(arrays, alpha_NT, problem.ridge)
    return Judged(residual, prediction_error(predictions_MT.double(), truth_MT, problem))


def _kernel_residual(arrays: Arrays, alpha_NT: torch.Tensor, ridge: float) -> float:
    """Return ||(K + ridge I) alpha - y|| / ||y|| of the worst target."""
    if isinstance(arrays.kernel_NN, AbstractOperator):
        product_NT = arrays.kernel_NN.matmat(alpha_NT)
    else:
        product_NT = torch.cat([rows_BN.double() @ alpha_NT for rows_BN in arrays.kernel.split(PREDICTED_ROWS)])
    return relative(arrays.targets_NT - product_NT - ridge * alpha_NT, arrays.targets_NT)


def _weights_residual(arrays: Arrays, weights_KT: torch.Tensor, ridge: float) -> float:
    """Return ||Phi^T (y - Phi w) - ridge w|| / ||Phi^T y|| of the worst target."""
    rhs_KT = torch.zeros_like(weights_KT)
    left_KT = -ridge * weights_KT
    for rows_MK, targets_MT in zip(
        arrays.inputs_ND.split(FLOOR_ROWS), arrays.targets_NT.split(FLOOR_ROWS), strict=True
    ):
        block_MK = rows_MK.double()
        rhs_KT += block_MK.T @ targets_MT
        left_KT += block_MK.T @ (targets_MT - block_MK @ weights_KT)
    return relative(left_KT, rhs_KT)


def relative(left_NT: torch.Tensor, rhs_NT: torch.Tensor) -> float:
    """Return the largest ratio of the columns' norms."""
    return float((left_NT.norm(dim=0) / rhs_NT.norm(dim=0)).max())


def prediction_error(predictions_MT: torch.Tensor, truth_MT: torch.Tensor, problem: Problem) -> float:
    """Return the share of wrong classes, or the root of the mean square error."""
    if problem.error == "classes":
        return float((predictions_MT.argmax(1) != truth_MT.argmax(1)).double().mean())
    return float((predictions_MT - truth_MT).square().mean().sqrt())
