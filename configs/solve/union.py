"""Every solver that a run may use."""

from typing import Annotated

from pydantic import Field

from ntkpipe.configs.solve.coordinates import ASkotchSolve, GaussSeidelSolve
from ntkpipe.configs.solve.descent import EigenProSolve
from ntkpipe.configs.solve.direct import CholeskySolve
from ntkpipe.configs.solve.krylov import PCGSolve
from ntkpipe.configs.solve.logistic import LogisticSolve

AnySolve = (
    CholeskySolve
    | EigenProSolve
    | PCGSolve
    | GaussSeidelSolve
    | ASkotchSolve
    | LogisticSolve
)  # fmt: skip

SolveConfig = Annotated[AnySolve, Field(discriminator="kind")]

SECTIONS: dict[str, type[AnySolve]] = {
    "cholesky": CholeskySolve,
    "eigenpro2": EigenProSolve,
    "pcg": PCGSolve,
    "gauss-seidel": GaussSeidelSolve,
    "askotch": ASkotchSolve,
    "logistic": LogisticSolve,
}
"""By kind, for callers that have no configuration file."""
