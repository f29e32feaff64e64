"""Where a solve through a Gram matrix is."""

import math
from dataclasses import dataclass, replace

import torch

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.configs.solve.direct import GramSolve
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.rectangle import AbstractRectangle
from ntkpipe.workers.solvers.base import SolverState
from ntkpipe.workers.solvers.direct.ridge_path import RidgePath
from ntkpipe.workers.solvers.system import System


@dataclass(frozen=True, slots=True, kw_only=True)
class GramState(SolverState):
    """Which pass comes next, and what the passes so far have found. S is the smaller one of N and K."""

    phase: str = "gram"
    """The next pass: ``gram``, ``leave-one-out`` or ``refine``."""
    single: bool
    """Whether the Gram matrix is made of float32 products."""
    factor_SS: torch.Tensor
    """Of the Gram matrix, see :class:`Factor`; no rows before there is one."""
    inverse_S: torch.Tensor
    projected_ST: torch.Tensor
    """V^T Phi^T y, or V^T y on the dual side; for a path."""
    values_S: torch.Tensor
    """Eigenvalues, ascending and at least 0; for a path."""
    weights_KT: torch.Tensor
    duals_KT: torch.Tensor
    """z with alpha = Phi z; for least squares."""
    ridges_R: torch.Tensor
    dof_R: torch.Tensor
    train_RT: torch.Tensor
    loo_RT: torch.Tensor
    """The path, and behind it the ridge itself where none is selected."""
    leverages_N: torch.Tensor
    """At the ridge that is used; empty unless leave-one-out errors were asked for."""
    refinements: int = 0


def path_of(state: GramState) -> RidgePath:
    """Return the path, and behind it the ridge itself where none is selected."""
    return RidgePath(state.ridges_R, state.dof_R, state.train_RT, state.loo_RT, len(state.alpha_NT))


def with_path(state: GramState, path: RidgePath) -> GramState:
    """Keep a path."""
    return replace(state, ridges_R=path.ridges_R, dof_R=path.dof_R, train_RT=path.train_RT, loo_RT=path.loo_RT)


def features_of(operator: AbstractOperator) -> AbstractRectangle:
    """Return the features whose Gram matrix a kernel is.

    Raises:
        ConfigError: There are none.
    """
    if operator.tags.features is None:
        raise ConfigError(
            "gram solves with features, but this kernel is only known by its entries. Pass (N, K) features or a "
            "FeatureOperator, or use cholesky."
        )
    return operator.tags.features


def is_dual(features: AbstractRectangle) -> bool:
    """Return whether the Gram matrix is that of the samples, not that of the features."""
    return features.shape[0] <= features.shape[1]


def is_least_squares(config: GramSolve, system: System) -> bool:
    """Return whether there is no ridge, given or selected."""
    return system.ridge == 0 and config.select == "none"


def ridge_of(system: System, state: GramState) -> float:
    """Return the ridge that was selected, or else the system's."""
    return system.ridge if math.isnan(state.ridge) else state.ridge


def again_in_double(state: GramState, reason: str = "") -> GramState:
    """Return the state before a Gram matrix of float64 products.

    Raises:
        NumericalError: Products are float64 already; says the reason.
    """
    if not state.single:
        raise NumericalError(f"{reason}; divide the features by a constant.")
    return replace(state, phase="gram", single=False, jitter=0.0, residual=math.nan, refinements=0)
