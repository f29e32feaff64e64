"""From a solve section to a solver; a solver's module is imported only when it is asked for."""

from typing import Any

from ntkpipe.configs.solve import CholeskySolve, SolveConfig
from ntkpipe.workers.solvers.base import AbstractSolver


def make_solver(config: SolveConfig) -> AbstractSolver[Any]:
    """Return the solver of a configuration."""
    if isinstance(config, CholeskySolve):
        from ntkpipe.workers.solvers.cholesky import CholeskySolver

        return CholeskySolver(config.max_jitter_doublings)
    from ntkpipe.workers.solvers.eigenpro2 import EigenProSolver

    return EigenProSolver(
        epochs=config.epochs,
        tolerance=config.tolerance,
        subsample=config.subsample,
        top=config.top,
        seed=config.seed,
    )
