"""Every solver that a run may use."""

from typing import Annotated

from pydantic import Field

from ntkpipe.configs.solve.direct import CholeskySolve
from ntkpipe.configs.solve.descent import EigenProSolve

SolveConfig = Annotated[CholeskySolve | EigenProSolve, Field(discriminator="kind")]

SECTIONS: dict[str, type[CholeskySolve | EigenProSolve]] = {"cholesky": CholeskySolve, "eigenpro2": EigenProSolve}
"""By kind, for callers that have no configuration file."""
