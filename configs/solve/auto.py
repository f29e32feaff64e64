"""Leaving the choice of the solver to ntkpipe."""

from typing import Literal

from pydantic import Field

from ntkpipe.configs.solve.base import IterativeSolve


class AutoSolve(IterativeSolve):
    """A factorisation where one fits, else the solver predicted to be fastest; ``ntkpipe plan`` says which one, and why.

    The choice is a function of sizes, limits and nominal speeds, not of measurements, so that it is the same on every
    machine and when a run is resumed.
    """

    kind: Literal["auto"] = "auto"
    tolerance: float = Field(1e-6, gt=0)
    """Of an iterative solver, if one is chosen."""
    budget_seconds: float | None = Field(None, gt=0)
    """What the solve may take by prediction. If no solver of the system itself is that quick, one that stops before it
    has converged, or a model with fewer centres, is taken, and the solution says so."""
