"""Refining what a factor of a Gram matrix gives by true residuals of the coefficients."""

import math
from dataclasses import replace

import torch

from ntkpipe.configs.solve.direct import GramSolve
from ntkpipe.workers.solvers.certificate import residual
from ntkpipe.workers.solvers.direct.factor import Factor
from ntkpipe.workers.solvers.direct.gram_state import (
    GramState,
    again_in_double,
    features_of,
    is_dual,
    is_least_squares,
    ridge_of,
)
from ntkpipe.workers.solvers.system import System

FLOOR = 16 * torch.finfo(torch.float64).eps
"""Times the condition number: relative residuals that no Gram matrix makes smaller, as alpha itself is rounded."""


def refined(config: GramSolve, system: System, state: GramState, total: torch.Tensor) -> GramState:
    """Judge the coefficients of a pass by their true residual, and correct the weights."""
    factor, weights_KT, ridge = Factor(state.factor_SS, state.inverse_S), state.weights_KT, ridge_of(system, state)
    num_features = len(weights_KT)
    image_KT, alpha_NT = total[:num_features], total[-system.size :]
    drift_KT = weights_KT - image_KT
    if is_least_squares(config, system):
        gradient_KT = total[num_features : 2 * num_features]
        rotated_KT = state.factor_SS.T @ drift_KT
        left_KT = gradient_KT + state.factor_SS @ (state.values_S.unsqueeze(1) * rotated_KT)
        residual_T = factor.inverse_norms(left_KT)
        corrected_KT = weights_KT + factor.solve(gradient_KT)
        duals_KT = state.duals_KT + factor.solve(corrected_KT - image_KT)
    else:
        residual_T = factor.norms(drift_KT)
        corrected_KT, duals_KT = weights_KT - ridge * factor.solve(drift_KT), state.duals_KT
    state, going_on = _judged(config, system, state, alpha_NT.clone(), float((residual_T / system.norms_T).max()))
    return replace(state, weights_KT=corrected_KT, duals_KT=duals_KT) if going_on else state


def refined_dual(config: GramSolve, system: System, state: GramState, alpha_NT: torch.Tensor) -> GramState:
    """Correct the coefficients by their true residual."""
    factor, system = Factor(state.factor_SS, state.inverse_S), replace(system, ridge=ridge_of(system, state))
    going_on = True
    while going_on:
        residual_NT = residual(system, alpha_NT)
        residual_T = system.relative(residual_NT) if system.ridge else factor.kept_norms(residual_NT) / system.norms_T
        state, going_on = _judged(config, system, state, alpha_NT, float(residual_T.max()))
        alpha_NT = alpha_NT + factor.solve(residual_NT)
    if state.status is None:
        return state
    weights_KT = features_of(system.operator).transposed_matmat(state.alpha_NT)
    return replace(state, weights_KT=weights_KT)


def _judged(
    config: GramSolve, system: System, state: GramState, alpha_NT: torch.Tensor, error: float
) -> tuple[GramState, bool]:
    """Keep the better coefficients, zero at the end if they are worse; return also whether to refine them."""
    before = math.inf if math.isnan(state.residual) else state.residual
    if error < before:
        state = replace(state, alpha_NT=alpha_NT, residual=error)
    if error <= config.tolerance:
        return replace(state, status="converged"), False
    halved = error <= before / 2
    if halved and state.refinements < config.max_refinements:
        return replace(state, refinements=state.refinements + 1), True
    if state.single and state.residual > FLOOR * state.largest / state.smallest:
        return again_in_double(state), False
    zero = float(system.relative(system.rhs_NT).max())
    if not state.residual <= zero:
        state = replace(state, alpha_NT=torch.zeros_like(alpha_NT), residual=zero)
    return replace(state, status="budget" if halved else "stagnated"), False


def unexplained(system: System, state: GramState, residual_NT: torch.Tensor) -> torch.Tensor:
    """Return the (T,) norms of what the features could explain of a residual, relative."""
    features, factor = features_of(system.operator), Factor(state.factor_SS, state.inverse_S)
    if is_dual(features):
        return factor.kept_norms(residual_NT) / system.norms_T
    return factor.inverse_norms(features.transposed_matmat(residual_NT)) / system.norms_T
