"""Cholesky factorisation in tiles: one tile at a time, and solving with the tiles."""

import math
from dataclasses import dataclass, replace
from typing import Protocol, final

import torch

from ntkpipe.configs.solve.tiled import TileCholeskySolve
from ntkpipe.workers.solvers.base import AbstractSolver, Evidence, SolverState
from ntkpipe.workers.solvers.certificate import residual, ridge_evidence
from ntkpipe.workers.solvers.system import System

TOLERANCE = 1e-8
"""A relative residual above this is refined, and after refinement not reported as converged."""


class Factor(Protocol):
    """The lower triangular factor L of K + ridge I in square tiles, as it is stored."""

    num_tiles: int
    tile_rows: int

    @property
    def is_complete(self) -> bool:
        """Whether there is a factor: it ends at the first tile that is not positive definite."""

    def tile(self, row: int, column: int) -> torch.Tensor:
        """Return a tile of the lower triangle, float64."""


def updated_tile(kernel_TT: torch.Tensor, factor: Factor, row: int, column: int) -> torch.Tensor:
    """Return K_ij - sum_{k < j} L_ik L_jk^T in float64, which overwrites the tile of K; reads 2 j tiles."""
    for left in range(column):
        left_TT = factor.tile(row, left)
        right_TT = left_TT if row == column else factor.tile(column, left)
        kernel_TT.addmm_(left_TT, right_TT.T, alpha=-1)
    return kernel_TT


def diagonal_tile(updated_TT: torch.Tensor) -> torch.Tensor | None:
    """Return the Cholesky factor of an updated tile on the diagonal; None if it is not positive definite."""
    factor_TT, failed = torch.linalg.cholesky_ex((updated_TT + updated_TT.T) / 2)
    return None if int(failed) or not torch.isfinite(factor_TT.diagonal()).all() else factor_TT


def panel_tile(updated_TT: torch.Tensor, diagonal_TT: torch.Tensor) -> torch.Tensor:
    """Return L_ij from an updated tile below the diagonal, and L_jj."""
    solved_TT: torch.Tensor = torch.linalg.solve_triangular(diagonal_TT, updated_TT.T, upper=False)
    return solved_TT.T.contiguous()


def solve_with(factor: Factor, rhs_NT: torch.Tensor) -> torch.Tensor:
    """Return (L L^T)^-1 y; reads every tile twice, and holds one at a time."""
    solved_NT = rhs_NT.clone()
    spans = [slice(start, start + factor.tile_rows) for start in range(0, len(rhs_NT), factor.tile_rows)]
    for row, span in enumerate(spans):
        for column in range(row):
            solved_NT[span] -= factor.tile(row, column) @ solved_NT[spans[column]]
        solved_NT[span] = torch.linalg.solve_triangular(factor.tile(row, row), solved_NT[span], upper=False)
    for row in reversed(range(len(spans))):
        span = spans[row]
        solved_NT[span] = torch.linalg.solve_triangular(factor.tile(row, row).T, solved_NT[span], upper=True)
        for column in range(row):
            solved_NT[spans[column]] -= factor.tile(row, column).T @ solved_NT[span]
    return solved_NT


@dataclass(frozen=True, slots=True, kw_only=True)
class TiledState(SolverState):
    """Coefficients and what they leave."""

    residual_NT: torch.Tensor
    log_determinant: float
    """Of K + ridge I."""


@final
class TileCholeskySolver(AbstractSolver[TiledState]):
    """Solves with a factor that is there already; one step is one solve or refinement, O(N T) memory beside a tile."""

    method = "tile-cholesky"
    equation = "ridge"
    state_type = TiledState

    def __init__(self, config: TileCholeskySolve, factor: Factor) -> None:
        self._factor = factor
        self._refinements = config.refinements

    def init(self, system: System) -> TiledState:
        """Start from zero; ``indefinite`` if the factorisation met a negative pivot."""
        zero_NT = torch.zeros_like(system.rhs_NT)
        if not self._factor.is_complete:
            return TiledState(
                alpha_NT=zero_NT, status="indefinite", residual_NT=system.rhs_NT, log_determinant=math.nan
            )
        diagonals = [self._factor.tile(index, index).diagonal() for index in range(self._factor.num_tiles)]
        log_determinant = 2 * math.fsum(float(diagonal_T.log().sum()) for diagonal_T in diagonals)
        return TiledState(
            alpha_NT=zero_NT,
            status=None,
            residual=1.0,
            residual_NT=system.rhs_NT,
            log_determinant=log_determinant,
        )

    def step(self, system: System, state: TiledState) -> TiledState:
        """Add what the factor makes of the residual, for as long as it halves it."""
        alpha_NT = state.alpha_NT + solve_with(self._factor, state.residual_NT)
        residual_NT = residual(system, alpha_NT)
        worst = float(system.relative(residual_NT).max())
        steps = state.steps + 1
        if not worst < state.residual:
            return replace(state, status="stagnated", steps=steps)
        found = replace(state, alpha_NT=alpha_NT, residual_NT=residual_NT, residual=worst, steps=steps)
        if worst <= TOLERANCE:
            return replace(found, status="converged")
        last = worst > state.residual / 2 or steps > self._refinements
        return replace(found, status="stagnated") if last else found

    def extras(self, state: TiledState) -> dict[str, torch.Tensor]:
        """The log-determinant of K + ridge I."""
        return {"log_determinant": torch.tensor(state.log_determinant, dtype=torch.float64)}

    def certify(self, system: System, state: TiledState) -> Evidence:
        """Recompute the residual."""
        return ridge_evidence(system, state.alpha_NT)
