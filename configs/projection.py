"""Which fixed random linear map takes a Jacobian to its features."""

from typing import Literal

from pydantic import Field, model_validator

from ntkpipe.configs.base import Section

ProjectionKind = Literal["auto", "none", "rademacher", "sjlt"]


class Projection(Section):
    """A random linear map from P parameters to ``dim`` = K numbers.

    Every random bit is a function of (operator version, seed, parameter name, output, row, column), so that the
    same map is drawn on any machine, at any batch size and by any number of workers.
    """

    kind: ProjectionKind = "auto"
    """``none`` keeps kernels exact; ``rademacher`` is dense with signs; ``sjlt`` is sparse, ``nonzeros`` per column.
    ``auto`` is the cheaper of the two at equal accuracy: ``sjlt``."""
    dim: int = Field(2048, ge=1)
    """K, the number of features per sample (per parameter group when layerwise)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Two seeds give independent maps."""
    nonzeros: int = Field(1, ge=1, le=64)
    """Non-zero entries per column of a sparse map; must divide ``dim``."""

    @model_validator(mode="after")
    def _nonzeros_divide_dim(self) -> "Projection":
        if self.resolved_kind == "sjlt" and self.dim % self.nonzeros:
            raise ValueError(f"dim = {self.dim} must be a multiple of nonzeros = {self.nonzeros}")
        return self

    @property
    def resolved_kind(self) -> Literal["none", "rademacher", "sjlt"]:
        """The map that is really used, with ``auto`` decided."""
        return "sjlt" if self.kind == "auto" else self.kind
