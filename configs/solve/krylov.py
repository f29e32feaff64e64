"""Solvers that multiply the whole matrix with a few vectors at a time."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ntkpipe.configs.solve.base import IterativeSolve


class PCGSolve(IterativeSolve):
    """Conjugate gradients with a damped low-rank preconditioner; all targets, and all ridges, share every product."""

    in_parts: ClassVar[bool] = True

    kind: Literal["pcg"] = "pcg"
    tolerance: float = Field(1e-6, gt=0)
    """Stop once the true relative residual of every target, at every ridge, is below this."""
    iterations: int = Field(500, ge=1)
    """The largest number of products with search directions; recomputed residuals come on top."""
    preconditioner: Literal["nystrom", "rpcholesky", "gaussian", "none"] = "nystrom"
    """``nystrom`` reads random columns, ``rpcholesky`` columns that are picked at random in proportion to what is left
    of the diagonal, ``gaussian`` spends one product with random vectors."""
    rank: int = Field(500, ge=1)
    """r, the rank of the preconditioner (at most N / 2)."""
    ridges: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Further ridges to solve for at the same time, in the units of ``ridge``."""

    @model_validator(mode="after")
    def _has_a_unit_for_the_path(self) -> Self:
        if self.ridges and self.ridge_scale == "mean-diagonal" and not self.ridge > 0:
            raise ValueError("ridges in units of the mean diagonal need a ridge above 0 beside them, found 0.")
        return self
