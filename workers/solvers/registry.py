"""From a solve section to a solver."""

from typing import Any

from ntkpipe.configs.solve import CholeskySolve, EigenProSolve
from ntkpipe.workers.solvers.base import AbstractSolver
from ntkpipe.workers.solvers.cholesky import CholeskySolver
from ntkpipe.workers.solvers.eigenpro2 import EigenProSolver


def make_solver(config: CholeskySolve | EigenProSolve) -> AbstractSolver[Any]:
    """Return the solver of a configuration."""
    match config:
        case CholeskySolve():
            return CholeskySolver(config.max_jitter_doublings)
        case EigenProSolve():
            return EigenProSolver(
                epochs=config.epochs,
                tolerance=config.tolerance,
                subsample=config.subsample,
                top=config.top,
                seed=config.seed,
            )
