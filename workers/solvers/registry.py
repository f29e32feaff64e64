"""From a solve section to a solver; a solver's module is imported only when it is asked for."""

import importlib
from typing import Any

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.solve.union import SolveConfig
from ntkpipe.workers.solvers.base import AbstractSolver

HOMES = {
    "cholesky": "direct.cholesky:CholeskySolver",
    "eigenpro2": "descent.eigenpro2:EigenProSolver",
    "pcg": "krylov.pcg:PCGSolver",
    "gauss-seidel": "descent.gauss_seidel:GaussSeidelSolver",
    "askotch": "descent.askotch:ASkotchSolver",
    "logistic": "glm.logistic:LogisticSolver",
    "gram": "direct.gram:GramSolver",
    "filter": "spectral.filtering:FilterSolver",
    "falkon": "centres.falkon:FalkonSolver",
    "eigenpro3": "centres.eigenpro:CentreEigenProSolver",
    "eigenpro4": "centres.eigenpro:CentreEigenProSolver",
}
"""Module and class by kind; a class takes its section."""


def make_solver(config: SolveConfig) -> AbstractSolver[Any]:
    """Return the solver of a configuration.

    Raises:
        ConfigError: It works on tiles that only a run stores.
    """
    if config.needs == "tiles":
        raise ConfigError(
            f"{config.kind} works on tiles that a run stores: name it under `solve` of a run, or use cholesky or pcg."
        )
    module, _, name = HOMES[config.kind].partition(":")
    solver: AbstractSolver[Any] = getattr(importlib.import_module(f"ntkpipe.workers.solvers.{module}"), name)(config)
    return solver
