"""Kernels of the distance between two vectors."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ntkpipe.configs.kernels.base import KernelSection


class GaussianConfig(KernelSection):
    """K(x, y) = exp(-|x - y|^2 / (2 w^2)) for the bandwidth w; positive definite."""

    kind: Literal["gaussian"] = "gaussian"
    bandwidth: float = Field(1.0, gt=0)
    """w, in the unit of the samples; scikit-learn's ``gamma`` is 1 / (2 w^2)."""


class LaplaceConfig(KernelSection):
    """K(x, y) = exp(-|x - y| / w) for the bandwidth w and a norm; positive definite for both."""

    kind: Literal["laplace"] = "laplace"
    bandwidth: float = Field(1.0, gt=0)
    """w, in the unit of the samples; scikit-learn's ``gamma`` is 1 / w."""
    norm: Literal["l1", "l2"] = "l2"
    """``l1``: sum of absolute differences, as scikit-learn's ``laplacian_kernel``; ``l2``: the Euclidean distance."""


class MaternConfig(KernelSection):
    """The Matern kernel of smoothness nu, positive definite.

    With t = sqrt(2 nu) |x - y| / w it is exp(-t) for nu = 1/2, (1 + t) exp(-t) for 3/2, and (1 + t + t^2 / 3) exp(-t)
    for 5/2. Rasmussen, Williams, Gaussian Processes for Machine Learning, 2006, section 4.2.
    """

    kind: Literal["matern"] = "matern"
    bandwidth: float = Field(1.0, gt=0)
    """w, in the unit of the samples."""
    nu: float = 1.5
    """0.5, 1.5 or 2.5. A Gaussian process of this kernel has derivatives up to the order below nu."""

    @field_validator("nu")
    @classmethod
    def _nu_has_a_closed_form(cls, nu: float) -> float:
        if nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"nu = {nu} has no closed form here; use 0.5, 1.5 or 2.5, or kind gaussian for infinity")
        return nu


class DispersalConfig(KernelSection):
    """K(x, y) = exp(-(|x - y| / w)^g); positive definite for 0 < g <= 2.

    g = 1 is the Laplace kernel, g = 2 the Gaussian kernel of bandwidth w / sqrt(2). Schoenberg, 1938.
    """

    kind: Literal["dispersal"] = "dispersal"
    bandwidth: float = Field(1.0, gt=0)
    """w, in the unit of the samples."""
    exponent: float = Field(1.0, gt=0, le=2)
    """g."""


class KerpleConfig(KernelSection):
    """A kernel of the distance d = |x - y| between positions that is positive only on differences.

    ``log``: K(x, y) = shift - scale log(1 + rate d^p); ``power``: K(x, y) = shift - scale d^p; 0 < p <= 2.

    Both are conditionally positive definite: c^T K c >= 0 for every c whose entries sum to 0, so that H K H with
    H = I - 1 1^T / N is positive semi-definite, while K itself has a negative eigenvalue unless ``shift`` is large
    enough; how large depends on the positions. A softmax over a row does not depend on it. Chi, Fan, Ramadge,
    Rudnicky, 2022.
    """

    kind: Literal["kerple"] = "kerple"
    variant: Literal["log", "power"] = "log"
    """Whether far positions count logarithmically or as a power of their distance."""
    scale: float = Field(1.0, gt=0)
    """r1 of ``log``, a of ``power``."""
    rate: float = Field(1.0, gt=0)
    """r2 of ``log``: one over the distance (to the power p) at which the logarithm sets in."""
    exponent: float = Field(1.0, gt=0, le=2)
    """p."""
    shift: float = Field(0.0, ge=0)
    """Added to every entry; the diagonal is this number."""

    @model_validator(mode="after")
    def _rate_belongs_to_log(self) -> "KerpleConfig":
        if self.variant == "power" and self.departs("rate"):
            raise ValueError(
                f"rate = {self.rate} has no meaning for variant = 'power'; drop it, or use variant = 'log'"
            )
        return self


DistanceConfig = GaussianConfig | LaplaceConfig | MaternConfig | DispersalConfig | KerpleConfig
