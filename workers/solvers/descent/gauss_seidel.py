"""Block Gauss-Seidel: coefficients of a block of rows are solved for exactly, given all others.

Every block takes (K + ridge I) alpha = y restricted to its rows, so that a^T (K + ridge I) a / 2 - y^T a never grows.
No solver here gets further in a single pass over stored rows; after that it is slow, as its rate is that of descent.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from ntkpipe.configs.solve.coordinates import GaussSeidelSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState, Status
from ntkpipe.workers.solvers.certificate import no_worse_than_zero, ridge_evidence, worst_residual
from ntkpipe.workers.solvers.system import System

SINGULAR = 1e-7
"""Added to a block that cannot be factorised, as a share of its largest diagonal entry; a block that still cannot be
has a negative eigenvalue that is no rounding error."""

DIVERGENCE = 10.0
"""An epoch that meets a residual that exceeds the smallest one this many times ends the solve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussSeidelState(SolverState):
    """Coefficients now and before the last epoch."""

    best_NT: torch.Tensor
    """Coefficients after the epoch that met the smallest residual."""
    best_residual: float
    """That residual, worst target; 1.0 for the zero start."""
    optimism: float = 1.0
    """By how much the residual that was expected last was too small."""


@final
class GaussSeidelSolver(AbstractSolver[GaussSeidelState]):
    """One step is one epoch: all blocks, 2 N^2 T + N b^2 / 3 FLOPs for blocks of b rows.

    Memory is O(b N + b^2 + N T). A block's diagonal is factorised in float64 whenever it is read. Products are float32
    where the operator is and the tolerance allows it. The true residual costs another pass, so it is recomputed only
    when it is expected to be below the tolerance; a single epoch that happens to be enough ends with ``budget`` unless
    there is only one block. ``indefinite`` means that a block of K + ridge I has a negative eigenvalue, or is zero, and
    ``diverged`` that the residual grew, which it cannot where K + ridge I is positive definite; coefficients are then
    those of the best epoch, or zero if their residual is larger than that of zero.
    """

    method = "gauss-seidel"
    equation = "ridge"
    state_type = GaussSeidelState

    def __init__(self, config: GaussSeidelSolve) -> None:
        self._config = config

    def init(self, system: System) -> GaussSeidelState:
        """Start from zero."""
        zero_NT = torch.zeros_like(system.rhs_NT)
        return GaussSeidelState(
            alpha_NT=zero_NT,
            status=None,
            smallest=system.ridge if system.ridge > 0 else math.nan,
            best_NT=zero_NT,
            best_residual=float(system.relative(system.rhs_NT).max()),
        )

    def step(self, system: System, state: GaussSeidelState) -> GaussSeidelState:
        """Run an epoch, and recompute the true residual when it is expected to be small enough."""
        config, best = self._config, state.best_residual
        alpha_NT, seen = self._epoch(system, state)
        state = replace(state, steps=state.steps + 1)
        if alpha_NT is None:
            return replace(_given_up(system, state, "indefinite"), smallest=math.nan)
        if not seen <= DIVERGENCE * max(best, config.tolerance) or not torch.isfinite(alpha_NT).all():
            return _given_up(system, state, "diverged")
        # What was met on the way is older than the result; what the epoch gained is expected to repeat itself.
        expected = state.optimism * seen * (min(1.0, seen / best) if best else 1.0)
        state = replace(state, alpha_NT=alpha_NT, residual=seen)
        if seen <= best:
            state = replace(state, best_NT=alpha_NT, best_residual=seen)
        if expected <= config.tolerance or self._rows(system.operator) >= system.size:
            true = worst_residual(system, alpha_NT)
            if true <= config.tolerance:
                return replace(state, status="converged", residual=true)
            state = replace(state, residual=true, optimism=max(1.0, state.optimism * true / max(expected, 1e-300)))
        return replace(state, status="budget") if state.steps >= config.epochs else state

    def extras(self, state: GaussSeidelState) -> dict[str, torch.Tensor]:
        """Nothing."""
        return {}

    def certify(self, system: System, state: GaussSeidelState) -> Evidence:
        """Recompute the residual."""
        return ridge_evidence(system, state.alpha_NT)

    def _rows(self, operator: AbstractOperator) -> int:
        return min(self._config.block_rows or operator.block_rows, operator.size)

    def _epoch(self, system: System, state: GaussSeidelState) -> tuple[torch.Tensor | None, float]:
        """Return coefficients after an epoch, None for an indefinite block, and the residual met on the way."""
        operator, ridge, rows = system.operator, system.ridge, self._rows(system.operator)
        dtype = system.precision(self._config.tolerance)
        alpha_NT, squares_T = state.alpha_NT.clone(), torch.zeros_like(system.norms_T)
        order = np.arange(-(-operator.size // rows))
        if self._config.order == "random":
            order = np.random.default_rng([self._config.seed, 1 + state.steps]).permutation(order)
        for block in order.tolist():
            span = slice(block * rows, min((block + 1) * rows, operator.size))
            block_BN = operator.rows(span.start, span.stop)
            lower_BB = factorise(block_BN[:, span].double(), ridge)
            if lower_BB is None:
                return None, math.nan
            product_BT = (block_BN.to(dtype) @ alpha_NT.to(dtype)).double()
            residual_BT = system.rhs_NT[span] - product_BT - ridge * alpha_NT[span]
            squares_T += residual_BT.square().sum(dim=0)
            alpha_NT[span] += torch.cholesky_solve(residual_BT, lower_BB)
        return alpha_NT, float((squares_T.sqrt() / system.norms_T).max())


def _given_up(system: System, state: GaussSeidelState, status: Status) -> GaussSeidelState:
    """Return the best coefficients; zero if they are worse than that, as what was met on the way is no true residual."""
    alpha_NT, residual = no_worse_than_zero(system, state.best_NT)
    return replace(state, alpha_NT=alpha_NT, residual=residual, status=status)


def factorise(matrix_BB: torch.Tensor, ridge: float) -> torch.Tensor | None:
    """Return the Cholesky factor of a block with the ridge; None if it has a negative eigenvalue, or is zero.

    A block that is singular to working precision is shifted: it is then solved a little short of exactly, which slows
    the method down but does not move its fixed point.
    """
    matrix_BB = (matrix_BB + matrix_BB.T) / 2
    matrix_BB.diagonal().add_(ridge)
    for shift in (0.0, SINGULAR * float(matrix_BB.diagonal().max())):
        matrix_BB.diagonal().add_(shift)
        found = torch.linalg.cholesky_ex(matrix_BB)
        if not int(found.info):
            lower_BB: torch.Tensor = found.L
            return lower_BB
    return None
