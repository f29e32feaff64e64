"""Accelerated sketched block coordinate descent, for systems of which little fits in memory.

Rathore, Frangella, Yang, Derezinski, Udell: "Have ASkotch: a neat solution for large-scale kernel ridge regression"
(2024). A step solves for the coefficients of some random rows with a damped Nystrom approximation of their block in
place of the block itself, as long as the largest eigenvalue of what that leaves allows, and Nesterov's acceleration
carries steps over to all coefficients. Two things differ: the strong convexity that the acceleration is tuned to is the
ridge as a share of the mean diagonal entry, so that it does not change with the kernel's unit, and an epoch takes every
row once, in random blocks, so that the residual met on the way is that of all rows.
"""

import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch

from ntkpipe.configs.solve.coordinates import ASkotchSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState
from ntkpipe.workers.solvers.certificate import no_worse_than_zero, ridge_evidence, worst_residual
from ntkpipe.workers.solvers.krylov.preconditioner import Preconditioner
from ntkpipe.workers.solvers.krylov.sketches import draw_sketch
from ntkpipe.workers.solvers.system import System

BLOCK_SHARE = 100
MIN_BLOCK_ROWS = 100
"""By default a block has N / 100 rows, at least 100."""

POWER_ITERATIONS = 10

DIVERGENCE = 10.0
"""An epoch whose residual exceeds the best one this many times is undone: acceleration is turned off, then steps are
halved."""

MIN_STEP_SCALE = 2.0**-10

MIN_CONVEXITY = 1e-10
"""Of the acceleration, for ridges that are zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ASkotchState(SolverState):
    """The three sequences of accelerated descent; the first one is alpha."""

    momentum_NT: torch.Tensor
    """v."""
    base_NT: torch.Tensor
    """z, from which steps are taken; equal to alpha without acceleration."""
    best_NT: torch.Tensor
    """Coefficients after the epoch with the smallest residual."""
    best_residual: float
    """That residual as met on the way, worst target; 1.0 for the zero start."""
    accelerated: bool
    step_scale: float = 1.0
    """Halved whenever an epoch without acceleration is undone."""
    optimism: float = 1.0
    """By how much the residual that was expected last was too small."""


@final
class ASkotchSolver(AbstractSolver[ASkotchState]):
    """One step is one epoch: N / b blocks of b random rows; O(N^2 T + N b r) FLOPs, and O(N^2 T / b) for acceleration.

    Memory is b N entries, O(b^2 + b r), and 32 N T bytes. Random rows of stored tiles read more than those rows; this
    is a method for matrices that are computed. Products are float32 where the operator is and the tolerance allows it.
    The true residual is recomputed when it is expected to be below the tolerance, and at the end. ``indefinite`` means
    that a block of K + ridge I has a negative eigenvalue, or is zero, and ``diverged`` that no step was short enough.
    """

    method = "askotch"
    equation = "ridge"
    state_type = ASkotchState

    def __init__(self, config: ASkotchSolve) -> None:
        self._config = config

    def init(self, system: System) -> ASkotchState:
        """Start from zero."""
        zero_NT = torch.zeros_like(system.rhs_NT)
        return ASkotchState(
            alpha_NT=zero_NT,
            status=None,
            smallest=system.ridge if system.ridge > 0 else math.nan,
            momentum_NT=zero_NT,
            base_NT=zero_NT,
            best_NT=zero_NT,
            best_residual=float(system.relative(system.rhs_NT).max()),
            accelerated=self._config.accelerated,
        )

    def step(self, system: System, state: ASkotchState) -> ASkotchState:
        """Run an epoch; undo it if it made things worse."""
        config, best = self._config, state.best_residual
        allowed = DIVERGENCE * max(best, config.tolerance)
        found, seen = self._epoch(system, state, allowed)
        if found is None:
            alpha_NT, true = no_worse_than_zero(system, state.best_NT)
            state = replace(state, alpha_NT=alpha_NT, residual=true, steps=state.steps + 1)
            return replace(state, status="indefinite", smallest=math.nan)
        expected = state.optimism * seen * (min(1.0, seen / best) if best else 1.0)
        if not seen <= allowed:
            found, expected = _undone(found), math.inf
        elif seen <= best:
            found = replace(found, best_NT=found.alpha_NT, best_residual=seen)
        last = found.steps >= config.epochs or found.step_scale < MIN_STEP_SCALE
        if expected > config.tolerance and not last:
            return replace(found, residual=seen)
        true = worst_residual(system, found.alpha_NT)
        if true <= config.tolerance:
            return replace(found, status="converged", residual=true)
        if last:
            return _give_up(system, found, true)
        return replace(found, residual=true, optimism=max(1.0, state.optimism * true / max(expected, 1e-300)))

    def extras(self, state: ASkotchState) -> dict[str, torch.Tensor]:
        """Return whether acceleration was kept to the end, as 1.0 or 0.0."""
        return {"accelerated": torch.tensor(float(state.accelerated), dtype=torch.float64)}

    def certify(self, system: System, state: ASkotchState) -> Evidence:
        """Recompute the residual."""
        return ridge_evidence(system, state.alpha_NT)

    def _epoch(self, system: System, state: ASkotchState, allowed: float) -> tuple[ASkotchState | None, float]:
        """Return the state after all blocks, None if one is indefinite, and the residual met on the way.

        An epoch ends early once that residual exceeds what is allowed.
        """
        operator, config, size = system.operator, self._config, system.size
        dtype = system.precision(config.tolerance)
        rows = min(config.block_rows or max(size // BLOCK_SHARE, MIN_BLOCK_ROWS), size)
        random = np.random.default_rng([config.seed, 1 + state.steps])
        momentum = Momentum.of(system, rows) if state.accelerated else None
        w_NT, v_NT, z_NT = state.alpha_NT, state.momentum_NT, state.base_NT
        squares_T, seen = torch.zeros_like(system.norms_T), 0.0
        for at in np.array_split(random.permutation(size), -(-size // rows)):
            at_B = torch.from_numpy(np.sort(at))
            rows_BN = operator.entries(at_B, torch.arange(size))
            gradient_BT = (rows_BN.to(dtype) @ z_NT.to(dtype)).double() + system.ridge * z_NT[at_B]
            gradient_BT -= system.rhs_NT[at_B]
            squares_T += gradient_BT.square().sum(dim=0)
            seen = float((squares_T.sqrt() / system.norms_T).max())
            if not seen <= allowed:
                break
            step_BT = self._block_step(rows_BN[:, at_B], gradient_BT, system.ridge, random)
            if step_BT is None:
                return None, math.nan
            w_NT, v_NT, z_NT = _move(momentum, v_NT, z_NT, at_B, state.step_scale * step_BT)
        steps = state.steps + 1
        return replace(state, alpha_NT=w_NT, momentum_NT=v_NT, base_NT=z_NT, steps=steps), seen

    def _block_step(
        self, block_BB: torch.Tensor, gradient_BT: torch.Tensor, ridge: float, random: np.random.Generator
    ) -> torch.Tensor | None:
        """Return P^-1 g / L for the damped Nystrom approximation P of a block; None if the block is indefinite."""
        block = DenseOperator((block_BB + block_BB.T) / 2)
        rank = min(self._config.rank, block.size)
        sketch = draw_sketch(block, "gaussian", rank, ridge, random)
        start_B1 = torch.from_numpy(random.standard_normal((block.size, 1)))
        largest = _largest(block, sketch.preconditioner, ridge, start_B1)
        if sketch.indefinite or not largest > 0:
            return None
        return _solved(sketch.preconditioner, gradient_BT, ridge) / largest


@final
@dataclass(frozen=True, slots=True)
class Momentum:
    """The weights of Nesterov's acceleration for block descent."""

    keep: float
    """How much of v is kept: 1 - sqrt(mu / nu)."""
    stride: float
    """By which v goes further than w: 1 / sqrt(mu nu)."""
    mix: float
    """The share of v in z: 1 / (1 + stride nu)."""

    @classmethod
    def of(cls, system: System, rows: int) -> "Momentum":
        """Take mu from the ridge and nu = N / b; mu nu is at most 1."""
        nu = system.size / rows
        scale = float(system.operator.diagonal().double().mean()) + system.ridge
        share = system.ridge / scale if scale > 0 else 0.0
        mu = min(max(share, MIN_CONVEXITY), 1 / nu)
        stride = 1 / math.sqrt(mu * nu)
        return cls(1 - math.sqrt(mu / nu), stride, 1 / (1 + stride * nu))


def _move(
    momentum: Momentum | None, v_NT: torch.Tensor, z_NT: torch.Tensor, at_B: torch.Tensor, step_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return w, v and z after a step of some rows."""
    w_NT = z_NT.index_add(0, at_B, step_BT, alpha=-1)
    if momentum is None:
        return w_NT, w_NT, w_NT
    v_NT = torch.lerp(z_NT, v_NT, momentum.keep).index_add_(0, at_B, step_BT, alpha=-momentum.stride)
    return w_NT, v_NT, torch.lerp(w_NT, v_NT, momentum.mix)


def _solved(preconditioner: Preconditioner | None, vectors_BT: torch.Tensor, ridge: float) -> torch.Tensor:
    if preconditioner is None:
        return vectors_BT
    return preconditioner.solve(vectors_BT, torch.full((vectors_BT.shape[1],), ridge, dtype=torch.float64))


def _largest(
    block: AbstractOperator, preconditioner: Preconditioner | None, ridge: float, vector_B1: torch.Tensor
) -> float:
    """Return the largest eigenvalue of P^-1 (K_BB + ridge I) by power iteration, which never overestimates it much."""
    largest = 0.0
    for _ in range(POWER_ITERATIONS):
        vector_B1 = vector_B1 / torch.linalg.vector_norm(vector_B1)
        product_B1 = block.matmat(vector_B1.to(block.dtype)).double() + ridge * vector_B1
        vector_B1 = _solved(preconditioner, product_B1, ridge)
        largest = float(torch.linalg.vector_norm(vector_B1))
        if not largest > 0:
            break
    return largest


def _undone(state: ASkotchState) -> ASkotchState:
    """Return to the best coefficients, without acceleration, or with half the step if that is off already."""
    best_NT = state.best_NT
    scale = state.step_scale if state.accelerated else state.step_scale / 2
    return replace(state, alpha_NT=best_NT, momentum_NT=best_NT, base_NT=best_NT, accelerated=False, step_scale=scale)


def _give_up(system: System, state: ASkotchState, true: float) -> ASkotchState:
    """Return the better one of the last and the best coefficients; zero if neither is better than zero."""
    zero = float(system.relative(system.rhs_NT).max())
    best = zero if not state.best_NT.any() else true
    if state.best_NT.any() and not torch.equal(state.alpha_NT, state.best_NT):
        best = worst_residual(system, state.best_NT)
    alpha_NT, true = (state.alpha_NT, true) if true <= best else (state.best_NT, best)
    if not true <= zero:
        return replace(state, alpha_NT=torch.zeros_like(alpha_NT), status="diverged", residual=zero)
    status = "diverged" if state.step_scale < MIN_STEP_SCALE else "budget"
    return replace(state, alpha_NT=alpha_NT, status=status, residual=true)
