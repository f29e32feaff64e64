"""Solvers of models that have coefficients on a few centres only."""

from typing import ClassVar, Literal

from pydantic import Field

from ntkpipe.configs.solve.base import IterativeSolve


class CentreSolve(IterativeSolve):
    """f(x) = sum_p K(x, z_p) a_p for centres z_p that minimises sum_n (f(x_n) - y_n)^2 + ridge a^T K_PP a.

    The residual is that of K_PN (K_PN^T a - y) + ridge K_PP a = 0, relative to K_PN y.
    """

    centres: int = Field(1000, ge=1)
    """P, how many samples are centres, drawn with the seed; at most N."""


class FalkonSolve(CentreSolve):
    """Conjugate gradients with a preconditioner from the centres' kernel matrix, factorised twice in float64."""

    in_parts: ClassVar[bool] = True

    kind: Literal["falkon"] = "falkon"
    tolerance: float = Field(1e-6, gt=0)
    """Stop once the true relative residual of every target is below this; the equations are squared, so that it has to
    be smaller than that of a kernel system."""
    iterations: int = Field(100, ge=1)
    """The largest number of passes over the kernel between samples and centres."""


class CentreDescentSolve(CentreSolve):
    """Preconditioned stochastic gradient descent, projected on the centres."""

    epochs: int = Field(10, ge=1)
    """The largest number of passes over the samples."""
    subsample: int = Field(2000, ge=2)
    """s, the centres that the preconditioner is estimated on (at most P)."""
    top: int = Field(100, ge=1)
    """q, how many leading eigendirections are flattened (at most s - 1)."""
    projection: Literal["cholesky", "eigenpro2"] = "cholesky"
    """How a gradient is projected: exactly, with P^2 numbers in memory, or by epochs of EigenPro 2 on the centres."""
    projection_epochs: int = Field(1, ge=1)
    """Of that EigenPro 2."""


class EigenPro3Solve(CentreDescentSolve):
    """EigenPro 3: every batch is projected at once."""

    kind: Literal["eigenpro3"] = "eigenpro3"


class EigenPro4Solve(CentreDescentSolve):
    """EigenPro 4: samples of many batches are temporary centres until they are projected together."""

    kind: Literal["eigenpro4"] = "eigenpro4"
    delay: int | None = Field(None, ge=1)
    """Blocks of rows between two projections; by default as many as have P rows."""
