"""Conjugate gradients for a model on centres, preconditioned by the centres' own kernel matrix."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from ntkpipe.configs.solve.centres import FalkonSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.solvers.base import AbstractPartitionedSolver, Evidence, SolverState
from ntkpipe.workers.solvers.centres.factors import NormalFactors, normal_factors
from ntkpipe.workers.solvers.centres.normal import NormalEquations, Points, drawn_centres, num_parts, spread
from ntkpipe.workers.solvers.system import System

MARGIN = 0.5
"""A target rests once the residual of the recurrence is below this share of the tolerance."""

PATIENCE = 25
"""Steps without a smaller residual after which the recurrence is no longer trusted."""

GAIN = 0.5
"""A restart that shrank the true residual by less than this is the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FalkonState(SolverState):
    """Where conjugate gradients are."""

    constants: ClassVar[frozenset[str]] = frozenset({"centres_P", "factors_PP", "scales_P"})

    centres_P: torch.Tensor
    """Positions of the centres."""
    factors_PP: torch.Tensor
    scales_P: torch.Tensor
    """The preconditioner's, see :class:`NormalFactors`."""
    solved_PT: torch.Tensor
    """Coefficients on the centres."""
    residual_PT: torch.Tensor
    """By the recurrence."""
    direction_PT: torch.Tensor
    """Where to go; zero for targets that rest."""
    energies_T: torch.Tensor
    """Of the residual, in the norm of the preconditioner's inverse."""
    norms_T: torch.Tensor
    """What residuals are relative to."""
    checking: bool = True
    """Whether the next step recomputes the residual instead of following the direction."""
    checked: float = math.inf
    """The worst residual at the last check."""
    checked_PT: torch.Tensor
    """The coefficients then."""
    best: float = math.inf
    """The worst residual of the recurrence, at its best since the last check."""
    steps_since_best: int = 0
    preconditioner_jitter: float = 0.0


@final
class FalkonSolver(AbstractPartitionedSolver[FalkonState]):
    """One step is one product with K_PN K_NP + ridge K_PP, or a check of the true residual, which costs the same.

    O(N P T + P^2 T) FLOPs per step and O(P^3) before the first one; memory 8 P^2 bytes (four times as many in the
    set-up), O((N + P) T), and a block of rows with P columns. Jitter that K_PP needs to be factorised enters the
    preconditioner only, so that the equations that are solved are those without it. ``indefinite`` means that no
    jitter of the size of a rounding error suffices, and the answer is zero; ``stagnated`` that a restart from the true
    residual did not halve it.
    """

    method = "falkon"
    equation = "centres"
    state_type = FalkonState

    def __init__(self, config: FalkonSolve, points: Points | None = None) -> None:
        """Draw the centres from the samples unless points are given."""
        self._config = config
        self._points = points

    def init(self, system: System) -> FalkonState:
        """Factorise."""
        points = self._points or Points(drawn_centres(self._config, system.size))
        centres_P, operator = points.centres_P, system.operator
        num_samples = self._equations(system, centres_P).num_samples
        factors, jitter = normal_factors(
            operator.submatrix(centres_P), num_samples=num_samples, ridge=system.ridge, dtype=operator.dtype
        )
        zeros_PT = system.rhs_NT.new_zeros(len(centres_P), system.rhs_NT.shape[1])
        return FalkonState(
            alpha_NT=torch.zeros_like(system.rhs_NT),
            status="indefinite" if factors is None else None,
            centres_P=centres_P,
            factors_PP=zeros_PT.new_zeros(0, 0) if factors is None else factors.packed_PP,
            scales_P=zeros_PT.new_zeros(0) if factors is None else factors.scales_P,
            solved_PT=zeros_PT,
            checked_PT=zeros_PT,
            residual_PT=zeros_PT,
            direction_PT=zeros_PT,
            energies_T=torch.zeros_like(system.norms_T),
            norms_T=torch.ones_like(system.norms_T),
            preconditioner_jitter=jitter,
        )

    def num_parts(self, operator: AbstractOperator) -> int:
        """Cut the rows into blocks."""
        return num_parts(operator)

    def partial(self, system: System, state: FalkonState, part: int) -> torch.Tensor:
        """Multiply the rows of some blocks, in float32 where the operator is and the tolerance allows it."""
        dtype = torch.float64 if state.checking else system.precision(self._config.tolerance)
        vectors_PT = state.solved_PT if state.checking else state.direction_PT
        equations = self._equations(system, state.centres_P)
        return equations.summand(vectors_PT, part, dtype, targets=state.checking)

    def absorb(self, system: System, state: FalkonState, total: torch.Tensor) -> FalkonState:
        """Check, or move along the direction and choose the next one."""
        if state.checking:
            return self._check(system, state, -total)
        state = self._move(system, state, total)
        # The last step is a check, so that what is returned is never worse than what was known.
        return replace(state, checking=state.checking or state.steps + 1 >= self._config.iterations)

    def extras(self, state: FalkonState) -> dict[str, torch.Tensor]:
        """Return the positions of the centres and the jitter of the preconditioner."""
        jitter = torch.tensor(state.preconditioner_jitter, dtype=torch.float64)
        return {"centres": state.centres_P, "preconditioner-jitter": jitter}

    def certify(self, system: System, state: FalkonState) -> Evidence:
        """Recompute the residual of the normal equations."""
        return self._equations(system, state.centres_P).evidence(state.alpha_NT[state.centres_P])

    def _equations(self, system: System, centres_P: torch.Tensor) -> NormalEquations:
        return NormalEquations(system, centres_P, self._points.samples_N if self._points is not None else None)

    def _check(self, system: System, state: FalkonState, residual_PT: torch.Tensor) -> FalkonState:
        """Start, or start again, from the true residual."""
        norms_T = state.norms_T
        if state.steps == 0:
            norms_T = self._equations(system, state.centres_P).norms(residual_PT)
        relative_T: torch.Tensor = torch.linalg.vector_norm(residual_PT, dim=0) / norms_T
        worst = float(relative_T.max())
        state = replace(state, steps=state.steps + 1, norms_T=norms_T, residual_PT=residual_PT)
        if worst <= self._config.tolerance:
            return replace(state, status="converged")
        better, last = worst < state.checked, state.steps >= self._config.iterations
        if not worst <= GAIN * state.checked or last:
            solved_PT = state.solved_PT if better else state.checked_PT
            alpha_NT = spread(solved_PT, state.centres_P, system.size)
            return replace(state, alpha_NT=alpha_NT, status="budget" if last else "stagnated")
        zeros_PT, zeros_T = torch.zeros_like(residual_PT), torch.zeros_like(norms_T)
        state = replace(
            state,
            checking=False,
            checked=worst,
            checked_PT=state.solved_PT,
            best=math.inf,
            direction_PT=zeros_PT,
            energies_T=zeros_T,
        )
        return self._turned(state, relative_T, steps_since_best=0)

    def _move(self, system: System, state: FalkonState, product_PT: torch.Tensor) -> FalkonState:
        """Minimise along the direction."""
        curvatures_T = (state.direction_PT * product_PT).sum(dim=0)
        # Where rounding has eaten the curvature, or there was nothing to do, the target stays where it is.
        lengths_T = (state.energies_T / curvatures_T).where(curvatures_T > 0, 0.0)
        solved_PT = state.solved_PT + lengths_T * state.direction_PT
        state = replace(
            state,
            steps=state.steps + 1,
            alpha_NT=spread(solved_PT, state.centres_P, system.size),
            solved_PT=solved_PT,
            residual_PT=state.residual_PT - lengths_T * product_PT,
        )
        relative_T: torch.Tensor = torch.linalg.vector_norm(state.residual_PT, dim=0) / state.norms_T
        worst = float(relative_T.max())
        best, waited = (worst, 0) if worst < state.best else (state.best, state.steps_since_best + 1)
        lost = bool(((state.energies_T > 0) & ~(curvatures_T > 0)).any())
        if worst <= MARGIN * self._config.tolerance or waited >= PATIENCE or lost:
            return replace(state, checking=True)
        return self._turned(replace(state, best=best), relative_T, steps_since_best=waited)

    def _turned(self, state: FalkonState, relative_T: torch.Tensor, *, steps_since_best: int) -> FalkonState:
        """Choose the next direction; targets that are solved rest."""
        preconditioned_PT = NormalFactors(state.factors_PP, state.scales_P).solve(state.residual_PT)
        energies_T = (state.residual_PT * preconditioned_PT).sum(dim=0)
        energies_T = energies_T.where(relative_T > MARGIN * self._config.tolerance, 0.0)
        shares_T = (energies_T / state.energies_T).where(state.energies_T > 0, 0.0)
        direction_PT = (preconditioned_PT + shares_T * state.direction_PT) * (energies_T > 0)
        return replace(state, direction_PT=direction_PT, energies_T=energies_T, steps_since_best=steps_since_best)
