"""Which linear systems a run solves on its kernels."""

from typing import Annotated, Literal

from pydantic import Field

from ntkpipe.configs.base import Section
from ntkpipe.configs.kernels.base import NAME_PATTERN


class SolveBase(Section):
    """What every solver is asked: (K + ridge I) alpha = y on the training split."""

    name: str = Field(pattern=NAME_PATTERN)
    """Under which name the solution is stored."""
    kernel: str
    """The kernel's name."""
    ridge: float = Field(1e-3, ge=0)
    """The lambda of K + lambda I."""
    ridge_scale: Literal["absolute", "mean-diagonal"] = "absolute"
    """``mean-diagonal`` multiplies the ridge by tr(K)/N, which makes it independent of the kernel's scale."""
    targets: Literal["one-hot", "values"] = "one-hot"
    """``one-hot`` classes, answered by argmax; ``values`` uses the labels as real targets."""


class CholeskySolve(SolveBase):
    """Dense Cholesky factorisation in float64, with a jitter ladder for matrices that are not positive definite."""

    kind: Literal["cholesky"] = "cholesky"
    max_jitter_doublings: int = Field(15, ge=0, le=60)
    """Jitter starts at 1e-5 tr(K)/N after a first attempt without any, and doubles up to this many times."""


class EigenProSolve(SolveBase):
    """EigenPro 2 with a nugget ridge: preconditioned stochastic gradient descent over stored rows."""

    kind: Literal["eigenpro2"] = "eigenpro2"
    epochs: int = Field(20, ge=1)
    """The largest number of passes over the kernel matrix."""
    tolerance: float = Field(1e-4, gt=0)
    """Stop once the true relative residual of every target is below this."""
    subsample: int = Field(2000, ge=2)
    """s, the Nystrom points of the preconditioner (at most N)."""
    top: int = Field(100, ge=1)
    """q, how many leading eigendirections are flattened (at most s - 1)."""
    seed: int = Field(0, ge=0)
    """Orders the batches and draws the Nystrom points."""


SolveConfig = Annotated[CholeskySolve | EigenProSolve, Field(discriminator="kind")]
