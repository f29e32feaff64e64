"""Where a solve through a Gram matrix is."""

from dataclasses import dataclass, replace

import torch

from ntkpipe.workers.solvers.base import SolverState
from ntkpipe.workers.solvers.direct.ridge_path import RidgePath


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
