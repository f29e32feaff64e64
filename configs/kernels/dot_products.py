"""Kernels of the inner product of two vectors, or of the angle between them."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ntkpipe.configs.kernels.base import KernelSection


class PolynomialConfig(KernelSection):
    """K(x, y) = (scale <x, y> + offset)^degree; positive semi-definite."""

    kind: Literal["polynomial"] = "polynomial"
    degree: int = Field(2, ge=1, le=100)
    """1 with ``offset`` 0 is the linear kernel."""
    scale: float = Field(1.0, gt=0)
    """Of the inner product; scikit-learn's ``gamma``, whose default is one over the number of coordinates."""
    offset: float = Field(1.0, ge=0)
    """Weighs low degrees against high ones; scikit-learn's ``coef0``. A negative one would make no positive kernel."""


class CosineConfig(KernelSection):
    """K(x, y) = <x, y> / (|x| |y|); 0 where a vector is zero, also on the diagonal."""

    kind: Literal["cosine"] = "cosine"


class ArcCosineConfig(KernelSection):
    """K(x, y) = 2 E[(w.x)_+^n (w.y)_+^n] over w ~ N(0, I): the covariance of one hidden layer of infinite width.

    K(x, y) = (|x| |y|)^n J_n(t) / pi with the angle t between the vectors and

    ====  =================================================
    n     J_n(t)
    ====  =================================================
    0     pi - t
    1     sin t + (pi - t) cos t
    2     3 sin t cos t + (pi - t) (1 + 2 cos^2 t)
    ====  =================================================

    A zero vector counts as orthogonal to all vectors and to itself: for n = 0, where a unit at rest counts half, its
    row and its diagonal are 1/2; for n > 0 they are 0. Cho, Saul, 2009.
    """

    kind: Literal["arc_cosine"] = "arc_cosine"
    order: Literal[0, 1, 2] = 1
    """n. 0: units that switch; 1: ReLU, and the kernel is |x| |y| kappa1; 2: squared ReLU."""


class ZonalConfig(KernelSection):
    """A kernel of the cosine u of two vectors of d coordinates, given by its spectrum on the unit sphere.

    K(x, y) = sum over degrees l of eigenvalue_l N(d, l) P_l(u), where P_l is the Gegenbauer polynomial of degree l and
    parameter (d - 2) / 2 (d = 3: Legendre, d = 2: cos(l arccos u)) with P_l(1) = 1, and N(d, l) the number of
    harmonics of degree l. The eigenvalues are those of the integral operator f -> E_y[K(x, y) f(y)] over the uniform
    distribution on the sphere, and K(x, x) = sum of eigenvalue_l N(d, l). Samples are normalised; zero vectors have
    no place on the sphere and are refused. Mueller, Spherical Harmonics, 1966; Dutordoir, Durrande, Hensman, 2020.
    """

    kind: Literal["zonal"] = "zonal"
    eigenvalues: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=1, max_length=10_000)
    """Of degrees 0, 1, 2, ...; further ones are 0. :func:`ntkpipe.workers.kernels.closed_form.zonal.degree_eigenvalues`
    computes those of any kernel of the cosine."""

    @field_validator("eigenvalues")
    @classmethod
    def _some_degree_counts(cls, eigenvalues: tuple[float, ...]) -> tuple[float, ...]:
        if not any(eigenvalues):
            raise ValueError("all eigenvalues are 0, which makes every entry 0; give at least one that is positive")
        return eigenvalues


DotProductConfig = PolynomialConfig | CosineConfig | ArcCosineConfig | ZonalConfig
