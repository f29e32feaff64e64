"""Scaling gradients by second moments before they are multiplied."""

from typing import Literal

from pydantic import Field, model_validator

from ntkpipe.configs.base import Section
from ntkpipe.configs.locations import Location


class Precondition(Section):
    """K(x, x') = sum_p g_p(x) (v_p + eps)^exponent g_p(x') with second moments v of every parameter's coordinates.

    ``fisher`` takes the diagonal of the empirical Fisher matrix, v = mean over samples of the squared gradients of the
    loss at the labels. ``adam`` reads the second moments of an optimiser.
    """

    runtime_fields = frozenset({"moments"})

    kind: Literal["fisher", "adam"]
    exponent: float = Field(-0.5, ge=-2, le=0)
    """-0.5 is Adam's update, -1 the natural gradient."""
    eps: float = Field(1e-8, gt=0)
    """Added to the second moments."""
    moments: Location | None = None
    """For ``adam``: a safetensors file with one tensor of second moments (``exp_avg_sq``) per parameter name."""
    samples: int = Field(1024, ge=1)
    """For ``fisher``: how many samples of the training split the mean is taken over, evenly spaced."""

    @model_validator(mode="after")
    def _moments_are_adams(self) -> "Precondition":
        if (self.moments is None) == (self.kind == "adam"):
            raise ValueError("moments names the file of kind adam, which needs one; kind fisher computes its own")
        return self
