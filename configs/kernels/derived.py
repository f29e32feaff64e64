"""Kernels that are made of other kernels of the run.

They are never stored: a tile of a derived kernel is computed from the tiles it is made of whenever it is read. Only what
needs a whole pass over a matrix, such as its means, is computed once and stored per sample.
"""

from typing import Literal

from pydantic import Field, model_validator

from ntkpipe.configs.base import Section
from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.configs.kernels.references import REFERENCE_PATTERN

REFERENCE = Field(pattern=REFERENCE_PATTERN)


class Term(Section):
    """One summand."""

    of: str = REFERENCE
    """A kernel that is listed before this one."""
    weight: float = Field(1.0)
    """May be negative; the sum may then not be positive semi-definite."""
    component: str | None = None
    """A parameter of a layerwise kernel; None takes the whole kernel."""


class SumConfig(KernelSection):
    """sum_t weight_t K_t(x, x')."""

    kind: Literal["sum"] = "sum"
    terms: tuple[Term, ...] = Field(min_length=1)

    @property
    def references(self) -> tuple[str, ...]:
        """What it is made of."""
        return tuple(term.of for term in self.terms)


class ProductConfig(KernelSection):
    """prod_t K_t(x, x'), entry by entry."""

    kind: Literal["product"] = "product"
    of: tuple[str, ...] = Field(min_length=2)
    """Kernels that are listed before this one; the same one may appear twice."""

    @property
    def references(self) -> tuple[str, ...]:
        """What it is made of."""
        return self.of


class _Transform(KernelSection):
    """A transform of one kernel."""

    of: str = REFERENCE
    """A kernel that is listed before this one."""

    @property
    def references(self) -> tuple[str, ...]:
        """What it is made of."""
        return (self.of,)


class PowerConfig(_Transform):
    """K(x, x')^exponent, entry by entry; positive semi-definite where K is."""

    kind: Literal["power"] = "power"
    exponent: int = Field(ge=1, le=64)


class ScaledConfig(_Transform):
    """factor K(x, x')."""

    kind: Literal["scaled"] = "scaled"
    factor: float | None = Field(None)
    """None divides by the mean of K(x, x) over the training split."""


class NormalisedConfig(_Transform):
    """K(x, x') / sqrt(K(x, x) K(x', x')), the cosine; 0 where K(x, x) is 0."""

    kind: Literal["normalised"] = "normalised"


class CentredConfig(_Transform):
    """K(x, x') - m(x) - m(x') + mean m, with m(x) the mean of K(x, .) over the training split.

    On the training split this is H K H with H = I - 1 1^T / N; other samples are centred by the same means.
    """

    kind: Literal["centred"] = "centred"


class PosteriorConfig(_Transform):
    """K(x, x') - K(x, S) (K(S, S) + noise I)^-1 K(S, x'): the covariance after S was observed.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning" (2006), equation 2.24.
    """

    kind: Literal["posterior"] = "posterior"
    noise: float = Field(gt=0)
    """Variance of an observation, in the units of K."""
    given: int | tuple[str, ...] | None = None
    """S: how many of the first training samples, or the ids of some; None takes all. Memory is that of K(S, S)."""

    @model_validator(mode="after")
    def _something_is_given(self) -> "PosteriorConfig":
        if isinstance(self.given, int) and self.given < 1:
            raise ValueError(f"given = {self.given} must be at least 1")
        if isinstance(self.given, tuple) and len(set(self.given)) != len(self.given):
            raise ValueError("given names a sample twice")
        if self.given == ():
            raise ValueError("given names no sample; leave it out to take the whole training split")
        return self


class EnsembleConfig(KernelSection):
    """The mean of a kernel over the members of the model."""

    kind: Literal["ensemble"] = "ensemble"
    of: str = REFERENCE
    """A kernel with members, named without one."""
    members: tuple[str, ...] | None = None
    """Which; None takes all."""

    @model_validator(mode="after")
    def _members_are_different(self) -> "EnsembleConfig":
        if self.members is not None and (not self.members or len(set(self.members)) < len(self.members)):
            raise ValueError("members names none, or one twice; leave it out to take all")
        return self

    @property
    def references(self) -> tuple[str, ...]:
        """What it is made of; the members are added where the model's are known."""
        return (self.of,)


DerivedConfig = (
    SumConfig
    | ProductConfig
    | PowerConfig
    | ScaledConfig
    | NormalisedConfig
    | CentredConfig
    | PosteriorConfig
    | EnsembleConfig
)

WITH_STATISTICS = ("centred", "posterior")
"""Kinds that need a pass over the matrix they are made of."""
