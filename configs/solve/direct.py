"""Solvers that factorise."""

from typing import Literal

from pydantic import Field

from ntkpipe.configs.solve.base import SolveBase


class CholeskySolve(SolveBase):
    """Dense Cholesky factorisation in float64, with a jitter ladder for matrices that are not positive definite."""

    kind: Literal["cholesky"] = "cholesky"
    max_jitter_doublings: int = Field(15, ge=0, le=60)
    """Jitter starts at 1e-5 tr(K)/N after a first attempt without any, and doubles up to this many times."""
