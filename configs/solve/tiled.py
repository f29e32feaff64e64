"""Factorising a matrix that fits no memory."""

from typing import ClassVar, Literal

from pydantic import Field

from ntkpipe.configs.solve.base import SolveBase


class TileCholeskySolve(SolveBase):
    """Cholesky factorisation in tiles that are stored in the run: a task per tile, a checkpoint per column of tiles.

    A tile is made from the ones to its left, L_ij = (K_ij - sum_k L_ik L_jk^T) L_jj^-T, so that no chunk is ever written
    twice, and all tiles of a column can be computed at the same time.
    """

    needs: ClassVar[Literal["kernel", "features", "tiles"]] = "tiles"

    kind: Literal["tile-cholesky"] = "tile-cholesky"
    tile_rows: int = Field(4096, ge=1)
    """t, rounded up to whole blocks of the kernel. A task holds about 4 t^2 numbers in float64; all tasks together read
    N^3 / (3 t) numbers of the factor."""
    precision: Literal["float32", "float64"] = "float64"
    """Of the stored factor; products are computed in float64, and solutions are refined against the kernel either way."""
    refinements: int = Field(10, ge=0)
    """The largest number of refinements, each of which reads the factor twice and the kernel once."""
