"""Every solver that a run may use."""

from typing import Annotated

from pydantic import Field

from ntkpipe.configs.solve.auto import AutoSolve
from ntkpipe.configs.solve.centres import EigenPro3Solve, EigenPro4Solve, FalkonSolve
from ntkpipe.configs.solve.coordinates import ASkotchSolve, GaussSeidelSolve
from ntkpipe.configs.solve.descent import EigenProSolve
from ntkpipe.configs.solve.direct import CholeskySolve, GramSolve
from ntkpipe.configs.solve.krylov import PCGSolve
from ntkpipe.configs.solve.logistic import LogisticSolve
from ntkpipe.configs.solve.spectral import FilterSolve
from ntkpipe.configs.solve.tiled import TileCholeskySolve

AnySolve = (
    CholeskySolve
    | EigenProSolve
    | PCGSolve
    | GaussSeidelSolve
    | ASkotchSolve
    | LogisticSolve
    | GramSolve
    | FilterSolve
    | FalkonSolve
    | EigenPro3Solve
    | EigenPro4Solve
    | TileCholeskySolve
    | AutoSolve
)  # fmt: skip

SolveConfig = Annotated[AnySolve, Field(discriminator="kind")]

SECTIONS: dict[str, type[AnySolve]] = {
    "cholesky": CholeskySolve,
    "eigenpro2": EigenProSolve,
    "pcg": PCGSolve,
    "gauss-seidel": GaussSeidelSolve,
    "askotch": ASkotchSolve,
    "logistic": LogisticSolve,
    "gram": GramSolve,
    "filter": FilterSolve,
    "falkon": FalkonSolve,
    "eigenpro3": EigenPro3Solve,
    "eigenpro4": EigenPro4Solve,
    "tile-cholesky": TileCholeskySolve,
    "auto": AutoSolve,
}
"""By kind, for callers that have no configuration file."""
