"""Solvers that factorise."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ntkpipe.configs.solve.base import SolveBase


class CholeskySolve(SolveBase):
    """Dense Cholesky factorisation, with a jitter ladder for matrices that are not positive definite."""

    kind: Literal["cholesky"] = "cholesky"
    max_jitter_doublings: int = Field(15, ge=0, le=60)
    """Jitter starts at 1e-5 tr(K)/N after a first attempt without any, and doubles up to this many times."""
    precision: Literal["auto", "float64"] = "auto"
    """``auto`` factorises float32 matrices in float32 and refines with float64 residuals, as long as that contracts."""


class GramSolve(SolveBase):
    """Ridge regression on stored features: one pass over their rows, then a factorisation of the smaller Gram matrix."""

    needs: ClassVar[Literal["kernel", "features", "tiles"]] = "features"

    in_parts: ClassVar[bool] = True

    kind: Literal["gram"] = "gram"
    ridges: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    """A path of ridges to report on, in the units of ``ridge``; they cost an eigendecomposition altogether."""
    select: Literal["none", "loo", "gcv"] = "none"
    """Solve with the ridge of the path that has the smallest leave-one-out or generalised cross-validation error, in
    place of ``ridge``."""
    leave_one_out: bool = False
    """Report exact leave-one-out errors and predictions even where nothing is selected by them; one more pass."""
    tolerance: float = Field(1e-6, gt=0)
    """The true relative residual of every target up to which the solution is refined."""
    max_refinements: int = Field(10, ge=0)
    """The largest number of refinements; each is a pass over the features."""
    precision: Literal["auto", "float64"] = "auto"
    """``auto`` multiplies float32 features in float32, block by block, and goes over to float64 where that is too
    coarse for the ridge."""

    @model_validator(mode="after")
    def _selects_from_a_path(self) -> Self:
        if self.select != "none" and not self.ridges:
            raise ValueError(f"select: {self.select!r} needs a path to select from; give 'ridges', found none.")
        if self.select == "none" and self.leave_one_out and self.ridge == 0:
            raise ValueError("leave_one_out needs a ridge above 0, found 0.")
        return self
