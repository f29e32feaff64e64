"""Conjugate gradients with a damped low-rank preconditioner, for many right-hand sides and ridges at once.

Every column, which is a target at a ridge, has its own scalars, and all columns share the products with K; that is what
reading K costs. One Krylov space for all ridges (multi-shift conjugate gradients) would share more, but it allows no
preconditioner that depends on the ridge, and the damped one does. Its basis U does not: a ridge only changes r numbers.

A recurrence for the residual drifts from the truth, the more in float32. So once it says that all columns are done, the
residual is recomputed in float64, by a product with the coefficients, and the method starts again from the true one.
That is iterative refinement: products with directions may stay float32 at any tolerance, for as long as every restart
at least halves the true residual; after that they are float64.
"""

import math
from dataclasses import replace
from typing import final

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.krylov import PCGSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractPartitionedSolver, Evidence
from ntkpipe.workers.solvers.certificate import ridge_evidence
from ntkpipe.workers.solvers.krylov.columns import (
    PCGState,
    columns,
    end,
    follow,
    measure_spectrum,
    pick,
    precondition,
    put,
    relative,
    start,
    targets,
    to_check,
    with_columns,
)
from ntkpipe.workers.solvers.krylov.sketches import draw_sketch
from ntkpipe.workers.solvers.system import System

SAFETY = 0.8
"""The recurrence is run a little below the tolerance, so that the true residual is below it as well."""

GAIN = {"float32": 1e-5, "float64": 1e-10}
"""By how much the recurrence may reduce the residual before it is recomputed."""

MAX_STALLS = 3
"""Restarts in a row that do not halve the true residual, after which the solve has stagnated."""

DIVERGENCE = 10.0
"""Coefficients whose true residual exceeds the best one this many times are neither started from nor returned: where a
singular system has no solution, energy falls for ever."""


@final
class PCGSolver(AbstractPartitionedSolver[PCGState]):
    """One step is one product; 2 N^2 C + 4 N r C FLOPs for C columns that are not frozen.

    Memory is 4 N r bytes for the preconditioner of a float32 operator, 8 N r of a float64 one, beside 48 N C. Setting
    up takes O(N r^2). ``largest`` and ``smallest`` are estimates: without a preconditioner extreme Ritz values, with one
    the sketch's first eigenvalue, and the smallest Ritz value of P^-1 (K + ridge I), which the smallest eigenvalue does
    not fall below, as P is at least the identity. ``stagnated`` means that restarts no longer halve the residual in
    float64, ``indefinite`` that K + ridge I is not positive definite to working precision, ``diverged`` that numbers
    overflow. Coefficients are then the best that were checked; those that ``budget`` ends with have less energy than any
    before, even where their residual is larger, as it is in the first steps of conjugate gradients.
    """

    method = "pcg"
    equation = "ridge"
    state_type = PCGState

    def __init__(self, config: PCGSolve) -> None:
        self._config = config

    def num_parts(self, operator: AbstractOperator) -> int:
        """Return the parts of a product."""
        return operator.num_parts

    def init(self, system: System) -> PCGState:
        """Sketch: the entries of r columns, or one product with r vectors."""
        config, operator = self._config, system.operator
        ridges_C = torch.tensor(self._ridges(system), dtype=torch.float64).repeat_interleave(system.rhs_NT.shape[1])
        sketch = draw_sketch(
            operator,
            config.preconditioner,
            0 if config.preconditioner == "none" else min(config.rank, operator.size // 2),
            float(ridges_C.min()),
            np.random.default_rng([config.seed, 0]),
        )
        state = start(system, ridges_C, sketch.preconditioner, config.tolerance)
        if sketch.indefinite:
            return end(state, "indefinite")
        # Zero solves what is zero, and nothing needs to be computed to know that residual.
        return self._restart(system, state) if bool(state.open_C.any()) else replace(state, status="converged")

    def partial(self, system: System, state: PCGState, part: int) -> torch.Tensor:
        """Multiply directions, or coefficients that are to be checked."""
        if state.checking:
            return system.operator.partial(pick(columns(state), state.active_C), part)
        dtype = torch.float32 if state.precision == "float32" else torch.float64
        return system.operator.partial(pick(state.directions_NC, state.active_C).to(dtype), part)

    def absorb(self, system: System, state: PCGState, total: torch.Tensor) -> PCGState:
        """Take the step along the directions, or start again from the residual that was recomputed."""
        state = replace(state, steps=state.steps + 1)
        return self._check(system, state, total) if state.checking else self._advance(system, state, total)

    def extras(self, state: PCGState) -> dict[str, torch.Tensor]:
        """Return the condition number after preconditioning and its rank, and the path where ridges were given.

        ``path_ridges`` (R,) are in the units of K; ``path_alpha`` is (R, N, T), and ``path_residuals`` (R, T) are true
        relative residuals, recomputed in float64.
        """
        rank = 0 if state.values_R is None else len(state.values_R)
        largest, smallest = state.preconditioned_largest, state.preconditioned_smallest
        # Rounding may make the smallest Ritz value of a singular matrix zero or negative.
        condition = largest / smallest if smallest > 0 else math.nan
        found = {
            "preconditioner_rank": torch.tensor(float(rank), dtype=torch.float64),
            "preconditioned_condition": torch.tensor(condition, dtype=torch.float64),
        }
        if state.path_NC is None:
            return found
        size, num_targets = state.alpha_NT.shape
        return found | {
            "path_ridges": state.ridges_C[num_targets::num_targets].clone(),
            "path_alpha": state.path_NC.reshape(size, -1, num_targets).transpose(0, 1).contiguous(),
            "path_residuals": state.best_C[num_targets:].reshape(-1, num_targets).clone(),
        }

    def certify(self, system: System, state: PCGState) -> Evidence:
        """Recompute the residual of the main ridge."""
        return ridge_evidence(system, state.alpha_NT)

    def _ridges(self, system: System) -> list[float]:
        """Return the main ridge and the others in the units of the matrix.

        Raises:
            ConfigError: There are others, and the targets are what a warm start left.
        """
        config = self._config
        known_T: torch.Tensor = torch.linalg.vector_norm(system.rhs_NT, dim=0)
        if config.ridges and not torch.allclose(known_T.where(known_T > 0, 1.0), system.norms_T):
            raise ConfigError("ridges cannot be combined with a warm start, whose rest is that of one ridge only.")
        scale = system.ridge / config.ridge if config.ridge_scale == "mean-diagonal" and config.ridges else 1.0
        return [system.ridge, *(scale * ridge for ridge in config.ridges)]

    def _advance(self, system: System, state: PCGState, total: torch.Tensor) -> PCGState:
        """Take one step in every active column; where there is no step to take, check what there is."""
        at_C, ridges_A = state.active_C, state.ridges_C[state.active_C]
        directions_NA, residual_NA = pick(state.directions_NC, at_C), pick(state.residual_NC, at_C)
        image_NA = total.double() + ridges_A * directions_NA
        curvature_A, rho_A = (directions_NA * image_NA).sum(dim=0), state.rho_C[at_C]
        rates_A = rho_A / curvature_A
        if not bool((curvature_A > 0).all() and (rates_A > 0).all() and torch.isfinite(rates_A).all()):
            finite = bool(torch.isfinite(image_NA).all() and torch.isfinite(rho_A).all())
            return to_check(state, "indefinite" if finite else "diverged")
        alpha_NA, residual_NA = pick(columns(state), at_C), residual_NA - rates_A * image_NA
        solved_NA = precondition(state, residual_NA, ridges_A)
        # As the preconditioner is rounded, this is safer than the ratio of two rho, with which it would be equal.
        ratios_A = (-rates_A * (solved_NA * image_NA).sum(dim=0) / rho_A).clamp(min=0.0)
        state = replace(
            with_columns(state, put(columns(state), at_C, alpha_NA + rates_A * directions_NA)),
            residual_NC=put(state.residual_NC, at_C, residual_NA),
            directions_NC=put(state.directions_NC, at_C, solved_NA + ratios_A * directions_NA),
            rho_C=put(state.rho_C, at_C, (residual_NA * solved_NA).sum(dim=0)),
            iterations=state.iterations + 1,
        )
        state = follow(state, at_C, rates_A, ratios_A)
        found_A = relative(system, residual_NA, targets(state)[at_C])
        active_C = put(at_C, at_C, found_A > state.goals_C[at_C])
        state = replace(state, residual=float(found_A.max()))
        if state.iterations >= self._config.iterations:
            return to_check(state, "budget")
        return replace(state, active_C=active_C) if bool(active_C.any()) else to_check(state, None)

    def _check(self, system: System, state: PCGState, total: torch.Tensor) -> PCGState:
        """End, or start again from the true residual."""
        checked_C, before = state.active_C, float(state.best_C[state.open_C].max())
        state = self._compared(system, measure_spectrum(system, state), total)
        if not bool(state.open_C.any()):
            return end(state, "converged")
        if state.ending == "budget":
            return end(state, "budget")
        halved = float(state.best_C[state.open_C].max()) <= before / 2
        state = replace(state, stalls=0 if halved else state.stalls + 1)
        if state.precision == "float32" and (state.ending or not halved):
            state = replace(state, precision="float64", ending=None, stalls=0)
        if state.ending is not None or state.stalls >= MAX_STALLS:
            return end(state, state.ending or "stagnated")
        true_C = relative(system, state.residual_NC, targets(state))
        if not bool((true_C <= DIVERGENCE * state.best_C)[checked_C].all()):
            return to_check(with_columns(state, state.best_NC), None)
        return self._restart(system, state)

    def _compared(self, system: System, state: PCGState, total: torch.Tensor) -> PCGState:
        """Return the state with true residuals, the better ones kept, and what has converged closed."""
        at_C, alpha_NC = state.active_C, columns(state)
        alpha_NA, rhs_NA = pick(alpha_NC, at_C), system.rhs_NT[:, targets(state)[at_C]]
        residual_NA = rhs_NA - total.double() - state.ridges_C[at_C] * alpha_NA
        true_A = relative(system, residual_NA, targets(state)[at_C])
        energy_A = -((rhs_NA + residual_NA) * alpha_NA).sum(dim=0) / 2
        better_A = true_A < state.best_C[at_C]
        if state.ending == "budget":
            better_A |= (energy_A < state.energy_C[at_C]) & (true_A <= DIVERGENCE * state.best_C[at_C])
        better_C = put(torch.zeros_like(at_C), at_C, better_A & torch.isfinite(true_A))
        best_C = state.best_C.where(~better_C, put(state.best_C, at_C, true_A))
        return replace(
            state,
            residual_NC=put(state.residual_NC, at_C, residual_NA),
            best_NC=torch.where(better_C, alpha_NC, state.best_NC),
            best_C=best_C,
            energy_C=state.energy_C.where(~better_C, put(state.energy_C, at_C, energy_A)),
            open_C=state.open_C & ~(best_C <= self._config.tolerance),
            residual=float(best_C.max()),
        )

    def _restart(self, system: System, state: PCGState) -> PCGState:
        """Start from the residual, along the preconditioned one, in all columns that are open."""
        solved_NC = precondition(state, state.residual_NC, state.ridges_C)
        return replace(
            state,
            checking=False,
            active_C=state.open_C,
            directions_NC=solved_NC,
            rho_C=(state.residual_NC * solved_NC).sum(dim=0),
            goals_C=(GAIN[state.precision] * relative(system, state.residual_NC, targets(state))).clamp(
                min=SAFETY * self._config.tolerance
            ),
            followed=int(state.open_C.int().argmax()),
            rates_I=None,
            ratios_I=None,
        )
