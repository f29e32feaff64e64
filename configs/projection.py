"""Which fixed random linear map takes a Jacobian to its features."""

import math
from typing import Literal

from pydantic import Field, model_validator

from ntkpipe.configs.base import Section

ResolvedKind = Literal["none", "tensorsketch", "sjlt", "rademacher", "gaussian", "srht", "khatri-rao", "kronecker"]
ProjectionKind = Literal[
    "auto", "none", "tensorsketch", "sjlt", "rademacher", "gaussian", "srht", "khatri-rao", "kronecker"
]


class Projection(Section):
    """A random linear map from P parameters to ``dim`` = K numbers.

    Every random bit is a function of (operator version, seed, parameter name, row, column), so that the same map is
    drawn on any machine, at any batch size and by any number of workers. The two halves of the features are independent
    sketches, from which standard errors of kernel entries follow.

    ================  ==========================================================  =====================================
    kind              map                                                         error of a kernel entry
    ================  ==========================================================  =====================================
    ``tensorsketch``  signed bins of outer products, by Fourier transforms        as dense
    ``sjlt``          a few signs in each column                                  as dense
    ``rademacher``    dense, signs                                                dense: sqrt((1 + cos^2) / K) of norms
    ``gaussian``      dense, normal numbers                                       as dense
    ``srht``          signs, Hadamard transform, random rows                      as dense
    ``khatri-rao``    products of dense signs on both sides of a layer            up to twice dense
    ``kronecker``     a small dense matrix on each side of a layer                up to K^(1/4) times dense; to compare
    ``none``          keeps kernels exact                                         none
    ================  ==========================================================  =====================================

    ``auto`` is ``tensorsketch``: at the accuracy of a dense map it is the cheapest for every layer, because the same
    map can be applied through Fourier transforms or through materialised gradients, whichever is faster there.
    """

    kind: ProjectionKind = "auto"
    dim: int = Field(2048, ge=2, lt=2**31)
    """K, the number of features per sample (per parameter group when layerwise); even."""
    target_error: float | None = Field(None, ge=1e-4, lt=1)
    """Instead of ``dim``: the root mean square error of any entry of the cosine kernel that K is chosen for."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Two seeds give independent maps."""
    nonzeros: int = Field(1, ge=1, le=32)
    """Non-zero entries per column of a sparse map in each half of the features; must divide half of ``dim``."""

    @model_validator(mode="after")
    def _dim_can_be_split(self) -> "Projection":
        if self.target_error is not None and self.departs("dim"):
            raise ValueError("give dim or target_error, not both")
        if self.target_error is not None and self.resolved_kind in ("khatri-rao", "kronecker", "none"):
            raise ValueError(f"the error of kind {self.resolved_kind!r} depends on the layers; give dim, or use auto")
        if self.dim % 2:
            raise ValueError(f"dim = {self.dim} must be even: each half of the features is a sketch of its own")
        if self.resolved_kind == "sjlt" and self.resolved_dim % (2 * self.nonzeros):
            raise ValueError(f"nonzeros = {self.nonzeros} must divide half of dim = {self.resolved_dim}")
        return self

    @property
    def resolved_kind(self) -> ResolvedKind:
        """The map that is really used, with ``auto`` decided."""
        return "tensorsketch" if self.kind == "auto" else self.kind

    @property
    def resolved_dim(self) -> int:
        """K, from ``target_error`` where that is given: the error is at most sqrt(2 / K), reached on the diagonal."""
        if self.target_error is None:
            return self.dim
        step = 2 * self.nonzeros if self.resolved_kind == "sjlt" else 2
        return step * math.ceil((2 / self.target_error**2 + self._lost) / step)

    @property
    def predicted_error(self) -> float | None:
        """Root mean square error of an entry of the cosine kernel at the most; None where it depends on the layers."""
        if self.resolved_kind == "none":
            return 0.0
        if self.resolved_kind in ("khatri-rao", "kronecker"):
            return None
        return math.sqrt(2 / max(1, self.resolved_dim - self._lost))

    @property
    def _lost(self) -> int:
        """By how many features a tensor sketch falls short of a dense map: each half has K / 2 - 1 free bins."""
        return 2 if self.resolved_kind == "tensorsketch" else 0
