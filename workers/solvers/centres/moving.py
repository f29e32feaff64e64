"""A model between two projections on its centres: what it is made of, and how it is brought back to them."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from ntkpipe.workers.solvers.base import SolverState
from ntkpipe.workers.solvers.centres.projection import AbstractProjection, PreparedProjection
from ntkpipe.workers.solvers.descent.window import Descent, Window
from ntkpipe.workers.solvers.system import System

FIRST_BATCH_ROWS = 64
"""Until the critical batch size has been measured."""


@final
@dataclass(frozen=True, slots=True)
class Directions:
    """Eigendirections that are flattened; see the state."""

    nystrom_S: torch.Tensor
    directions_SQ: torch.Tensor
    eigenvalues_Q: torch.Tensor
    damping_Q: torch.Tensor
    products_PQ: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CentreEigenProState(SolverState):
    """Model, preconditioner and projection, and where in an epoch the solver is. ``alpha_NT`` is the model before it."""

    constants: ClassVar[frozenset[str]] = frozenset(
        {
            "centres_P",
            "nystrom_S",
            "directions_SQ",
            "eigenvalues_Q",
            "damping_Q",
            "products_PQ",
            "factor_PP",
            "inner_points_S",
            "inner_directions_SQ",
            "inner_damping_Q",
        }
    )

    centres_P: torch.Tensor
    """Positions of the centres."""
    nystrom_S: torch.Tensor
    """Which of them are Nystrom points."""
    directions_SQ: torch.Tensor
    """Leading eigenvectors of their kernel matrix K_s."""
    eigenvalues_Q: torch.Tensor
    damping_Q: torch.Tensor
    """How much of each direction is held back."""
    products_PQ: torch.Tensor
    """K_PS times the directions."""
    factor_PP: torch.Tensor
    """Of K_PP + jitter I; empty where EigenPro 2 projects."""
    inner_points_S: torch.Tensor
    inner_directions_SQ: torch.Tensor
    inner_damping_Q: torch.Tensor
    """The preconditioner of that EigenPro 2; empty where a factor projects."""
    projection_jitter: float
    solved_PT: torch.Tensor
    """Coefficients on the centres after the last projection."""
    kept: float
    """What has become of them since: they are to be multiplied by this."""
    pending_W: torch.Tensor
    """Positions of temporary centres."""
    pending_WT: torch.Tensor
    """Their coefficients."""
    pulled_PT: torch.Tensor
    """K_PW times these."""
    back_QT: torch.Tensor
    """Coefficients along the directions since the last projection."""
    inner_QT: torch.Tensor
    """Products of the directions with the whole model, in the kernel's inner product."""
    met_PT: torch.Tensor
    """K_PN times the residuals as met in the epoch so far."""
    targets_PT: torch.Tensor
    """K_PN y, after the first epoch."""
    squares_T: torch.Tensor
    """Squared residuals at the samples as met in the epoch so far."""
    best_PT: torch.Tensor
    """Coefficients after the epoch with the smallest residual at the samples."""
    best_residual: float
    """That residual, worst target; 1.0 for the zero start."""
    estimate: float = math.inf
    """The smallest estimate of the normal equations' residual after an epoch; infinite before the first one."""
    idle_epochs: int = 0
    """Epochs that gained nothing."""
    batch_rows: int = FIRST_BATCH_ROWS
    step_scale: float = 1.0
    blocks_done: int = 0
    """Blocks of rows of the epoch that are behind."""
    blocks_pending: int = 0
    """Blocks of rows since the last projection."""

    def fitted(self, kernel_RP: torch.Tensor, kernel_RW: torch.Tensor, features_RQ: torch.Tensor) -> torch.Tensor:
        """Return what the model predicts at some rows, given their kernels with centres and temporary centres."""
        dtype = kernel_RP.dtype
        fitted_RT = self.kept * (kernel_RP @ self.solved_PT.to(dtype)) + features_RQ @ self.back_QT.to(dtype)
        return fitted_RT + kernel_RW @ self.pending_WT.to(dtype) if len(self.pending_W) else fitted_RT


def started(
    system: System, prepared: PreparedProjection | None, centres_P: torch.Tensor, found: Directions
) -> CentreEigenProState:
    """Return the zero model; ``indefinite`` if it cannot be projected."""
    num_centres, num_directions = found.products_PQ.shape
    zeros_PT = system.rhs_NT.new_zeros(num_centres, system.rhs_NT.shape[1])
    zeros_QT = zeros_PT.new_zeros(num_directions, zeros_PT.shape[1])
    projection = prepared or PreparedProjection.nothing()
    return CentreEigenProState(
        alpha_NT=torch.zeros_like(system.rhs_NT),
        status="indefinite" if prepared is None else None,
        factor_PP=projection.factor_PP,
        inner_points_S=projection.points_S,
        inner_directions_SQ=projection.directions_SQ,
        inner_damping_Q=projection.damping_Q,
        projection_jitter=projection.jitter,
        solved_PT=zeros_PT,
        kept=1.0,
        pending_W=centres_P[:0],
        pending_WT=zeros_PT[:0],
        pulled_PT=zeros_PT,
        back_QT=zeros_QT,
        inner_QT=zeros_QT,
        met_PT=zeros_PT,
        targets_PT=zeros_PT,
        squares_T=torch.zeros_like(system.norms_T),
        best_PT=zeros_PT,
        best_residual=1.0,
        batch_rows=min(FIRST_BATCH_ROWS, system.operator.block_rows),
        centres_P=centres_P,
        nystrom_S=found.nystrom_S,
        directions_SQ=found.directions_SQ,
        eigenvalues_Q=found.eigenvalues_Q,
        damping_Q=found.damping_Q,
        products_PQ=found.products_PQ,
    )


def grown(
    state: CentreEigenProState, rows_G: torch.Tensor, kernel_GP: torch.Tensor, window: Window, found: Descent
) -> CentreEigenProState:
    """Return the model with the samples of a window as further temporary centres."""
    # Until an epoch was completed, nobody knows what residuals are relative to.
    first = math.isinf(state.estimate)
    sides = [found.changes_MT, found.gradients_MT, *([window.targets_MT] if first else [])]
    pulled = (kernel_GP.T @ torch.cat(sides, dim=1)).double().chunk(len(sides), dim=1)
    kept, changes_GT, back_QT = found.kept, found.changes_MT.double(), found.back_QT.double()
    inner_QT = kept * state.inner_QT + (window.features_MQ.T @ found.changes_MT).double()
    return replace(
        state,
        kept=kept * state.kept,
        pending_W=torch.cat([state.pending_W, rows_G]),
        pending_WT=torch.cat([kept * state.pending_WT, changes_GT]),
        pulled_PT=kept * state.pulled_PT + pulled[0],
        back_QT=kept * state.back_QT + back_QT,
        inner_QT=inner_QT + state.eigenvalues_Q.unsqueeze(1) * back_QT,
        met_PT=state.met_PT + pulled[1],
        targets_PT=state.targets_PT + pulled[2] if first else state.targets_PT,
        squares_T=state.squares_T + found.gradients_MT.double().square().sum(dim=0),
    )


def projected(state: CentreEigenProState, projection: AbstractProjection) -> CentreEigenProState:
    """Return the model with coefficients on its centres only."""
    if projection.exact:
        solved_PT = state.kept * state.solved_PT + projection.project(state.pulled_PT)
        # Directions are made of centres, so that they need no projection.
        solved_PT[state.nystrom_S] += state.directions_SQ @ state.back_QT
    else:
        # A map that is not the inverse has the right fixed points only if it is given all that has changed.
        changed_PT = state.pulled_PT + state.products_PQ @ state.back_QT
        if state.kept != 1:
            changed_PT = changed_PT + (state.kept - 1) * projection.product(state.solved_PT)
        solved_PT = state.solved_PT + projection.project(changed_PT)
    return settled(state, solved_PT)


def settled(state: CentreEigenProState, solved_PT: torch.Tensor) -> CentreEigenProState:
    """Return the model with these coefficients on its centres and nothing besides."""
    return replace(
        state,
        solved_PT=solved_PT,
        kept=1.0,
        pending_W=state.pending_W[:0],
        pending_WT=state.pending_WT[:0],
        pulled_PT=torch.zeros_like(state.pulled_PT),
        back_QT=torch.zeros_like(state.back_QT),
        inner_QT=state.products_PQ.T @ solved_PT,
        blocks_pending=0,
    )
