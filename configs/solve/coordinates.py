"""Solvers that solve for some coefficients at a time, given the others."""

from typing import Literal

from pydantic import Field

from ntkpipe.configs.solve.base import IterativeSolve


class GaussSeidelSolve(IterativeSolve):
    """Block Gauss-Seidel: every block of rows is read once per epoch and its coefficients are solved for exactly."""

    kind: Literal["gauss-seidel"] = "gauss-seidel"
    epochs: int = Field(1, ge=1)
    """The largest number of passes over the kernel matrix."""
    block_rows: int | None = Field(None, ge=1)
    """Rows per block; by default as many as are stored or computed together."""
    order: Literal["random", "cyclic"] = "random"
    """In which blocks are visited; ``random`` draws another order for every epoch."""


class ASkotchSolve(IterativeSolve):
    """Accelerated block coordinate descent, each block solved by a low-rank approximation, for little memory."""

    kind: Literal["askotch"] = "askotch"
    epochs: int = Field(20, ge=1)
    """The largest number of passes over the kernel matrix."""
    block_rows: int | None = Field(None, ge=1)
    """b, random rows per block; by default N / 100, at least 100 (at most N)."""
    rank: int = Field(100, ge=1)
    """r, of a block's Nystrom approximation (at most b)."""
    accelerated: bool = True
    """Nesterov's acceleration; turned off on the way where it makes things worse."""
