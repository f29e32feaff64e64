"""Solvers that take gradient steps over some rows at a time."""

from typing import Literal

from pydantic import Field

from ntkpipe.configs.solve.base import IterativeSolve


class EigenProSolve(IterativeSolve):
    """EigenPro 2 with a nugget ridge: preconditioned stochastic gradient descent over stored rows."""

    kind: Literal["eigenpro2"] = "eigenpro2"
    epochs: int = Field(20, ge=1)
    """The largest number of passes over the kernel matrix."""
    subsample: int = Field(2000, ge=2)
    """s, the Nystrom points of the preconditioner (at most N)."""
    top: int = Field(100, ge=1)
    """q, how many leading eigendirections are flattened (at most s - 1)."""
    momentum: bool = True
    """Whether batches go on in the direction of those before them, as AxlePro's do. Tight tolerances and small ridges
    then take fewer passes; products take twice the FLOPs. There is none where K + ridge I is singular."""
