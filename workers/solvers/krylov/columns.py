"""The state of preconditioned conjugate gradients, and how its columns are picked and put back."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from ntkpipe.workers.solvers.base import SolverState, Status
from ntkpipe.workers.solvers.krylov.preconditioner import Preconditioner
from ntkpipe.workers.solvers.krylov.ritz import ritz_extremes
from ntkpipe.workers.solvers.system import System

Precision = Literal["float32", "float64"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PCGState(SolverState):
    """Columns are targets at the main ridge first, then targets at every other ridge; C = (R + 1) T."""

    constants: ClassVar[frozenset[str]] = frozenset({"ridges_C", "basis_NR", "values_R"})

    ridges_C: torch.Tensor
    """The ridge of each column, float64."""
    basis_NR: torch.Tensor | None
    """The preconditioner's, in the precision of the operator; None without one."""
    values_R: torch.Tensor | None
    path_NC: torch.Tensor | None
    """Coefficients of the columns beyond the first T; None if there are none."""
    residual_NC: torch.Tensor
    """By the recurrence, float64."""
    directions_NC: torch.Tensor
    rho_C: torch.Tensor
    """Residual times preconditioned residual."""
    goals_C: torch.Tensor
    """At which relative residual a column is frozen until the next recomputation."""
    active_C: torch.Tensor
    """Which columns the next product is for: those that are not frozen, or all that are to be checked."""
    open_C: torch.Tensor
    """Which columns have not been found to be below the tolerance."""
    best_NC: torch.Tensor
    """The best coefficients that have been checked; zero at first."""
    best_C: torch.Tensor
    """Their true relative residuals."""
    energy_C: torch.Tensor
    """Their a^T (K + ridge I) a / 2 - y^T a, which conjugate gradients reduce."""
    checking: bool
    """Whether the next product is with the coefficients, for a true residual."""
    ending: Status | None
    """Why the solve ends after the next check unless that finds it converged."""
    precision: Precision
    """Of products with directions."""
    iterations: int = 0
    """Products with directions."""
    stalls: int = 0
    """Checks in a row that found the residual not halved."""
    followed: int = 0
    """The column whose scalars give Ritz values."""
    rates_I: torch.Tensor | None = None
    """Its steps since the last check."""
    ratios_I: torch.Tensor | None = None
    """The ratios of its directions since then."""
    preconditioned_largest: float = math.nan
    """The largest Ritz value found in any run between two checks."""
    preconditioned_smallest: float = math.nan


def start(system: System, ridges_C: torch.Tensor, made: Preconditioner | None, tolerance: float) -> PCGState:
    """Return the state at zero; what it is told to multiply first is not set yet."""
    size, num_targets = system.rhs_NT.shape
    residual_NC = system.rhs_NT.repeat(1, len(ridges_C) // num_targets)
    zero_NC = torch.zeros_like(residual_NC)
    best_C = relative(system, residual_NC, torch.arange(len(ridges_C)) % num_targets)
    path_NC = torch.zeros(size, len(ridges_C) - num_targets, dtype=torch.float64)
    return PCGState(
        alpha_NT=torch.zeros_like(system.rhs_NT),
        status=None,
        residual=float(best_C.max()),
        largest=math.nan if made is None else float(made.values_R[0]) + system.ridge,
        smallest=system.ridge if system.ridge > 0 else math.nan,
        ridges_C=ridges_C,
        basis_NR=None if made is None else made.basis_NR,
        values_R=None if made is None else made.values_R,
        path_NC=path_NC if path_NC.numel() else None,
        residual_NC=residual_NC,
        directions_NC=zero_NC,
        rho_C=torch.zeros_like(ridges_C),
        goals_C=torch.zeros_like(ridges_C),
        active_C=best_C > tolerance,
        open_C=best_C > tolerance,
        best_NC=zero_NC,
        best_C=best_C,
        energy_C=torch.zeros_like(ridges_C),
        checking=False,
        ending=None,
        precision="float32" if system.operator.dtype == torch.float32 else "float64",
    )


def columns(state: PCGState) -> torch.Tensor:
    """Return the (N, C) coefficients."""
    return state.alpha_NT if state.path_NC is None else torch.cat([state.alpha_NT, state.path_NC], dim=1)


def with_columns(state: PCGState, columns_NC: torch.Tensor) -> PCGState:
    """Return the state with other coefficients."""
    if state.path_NC is None:
        return replace(state, alpha_NT=columns_NC)
    num_targets = state.alpha_NT.shape[1]
    return replace(
        state, alpha_NT=columns_NC[:, :num_targets].contiguous(), path_NC=columns_NC[:, num_targets:].contiguous()
    )


def targets(state: PCGState) -> torch.Tensor:
    """Return the (C,) target of each column."""
    return torch.arange(len(state.ridges_C)) % state.alpha_NT.shape[1]


def pick(values: torch.Tensor, at_C: torch.Tensor) -> torch.Tensor:
    """Return some columns of (N, C) values; not a copy if those are all."""
    return values if bool(at_C.all()) else values[:, at_C]


def put(values: torch.Tensor, at_C: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """Return a copy of (N, C) or (C,) values with some columns replaced."""
    if bool(at_C.all()):
        return picked
    values = values.clone()
    values[..., at_C] = picked
    return values


def relative(system: System, residual_NA: torch.Tensor, targets_A: torch.Tensor) -> torch.Tensor:
    """Return the (A,) relative norms of the residuals of some columns."""
    norms_A: torch.Tensor = torch.linalg.vector_norm(residual_NA, dim=0)
    return norms_A / system.norms_T[targets_A]


def precondition(state: PCGState, residual_NA: torch.Tensor, ridges_A: torch.Tensor) -> torch.Tensor:
    """Return P^-1 times a residual."""
    if state.basis_NR is None or state.values_R is None:
        return residual_NA
    return Preconditioner(state.basis_NR, state.values_R).solve(residual_NA, ridges_A)


def to_check(state: PCGState, ending: Status | None) -> PCGState:
    """Recompute the residuals of all columns that are open next."""
    return replace(state, checking=True, active_C=state.open_C, ending=ending)


def end(state: PCGState, status: Status) -> PCGState:
    """Return the best coefficients that were checked."""
    smallest = math.nan if status == "indefinite" else state.smallest
    return replace(with_columns(state, state.best_NC), status=status, checking=False, smallest=smallest)


def follow(state: PCGState, at_C: torch.Tensor, rates_A: torch.Tensor, ratios_A: torch.Tensor) -> PCGState:
    """Note the scalars of the column that is followed; one of another ridge tells nothing of the main one."""
    if state.followed >= state.alpha_NT.shape[1] or not bool(at_C[state.followed]):
        return state
    position = int(at_C[: state.followed].sum())
    rate_1, ratio_1 = rates_A[position : position + 1], ratios_A[position : position + 1]
    if state.rates_I is not None and state.ratios_I is not None:
        rate_1, ratio_1 = torch.cat([state.rates_I, rate_1]), torch.cat([state.ratios_I, ratio_1])
    return replace(state, rates_I=rate_1, ratios_I=ratio_1)


def measure_spectrum(system: System, state: PCGState) -> PCGState:
    """Update what the scalars since the last check tell of the spectrum."""
    if state.rates_I is None or state.ratios_I is None:
        return state
    largest, smallest = ritz_extremes(state.rates_I, state.ratios_I)
    state = replace(
        state,
        preconditioned_largest=max(largest, state.preconditioned_largest, key=_known),
        preconditioned_smallest=min(smallest, state.preconditioned_smallest, key=lambda value: -_known(-value)),
    )
    if state.basis_NR is None:
        state = replace(state, largest=state.preconditioned_largest)
    return replace(state, smallest=max(state.preconditioned_smallest, system.ridge))


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else value
