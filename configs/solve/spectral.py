"""Solvers that choose what to do with every eigenvalue."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ntkpipe.configs.solve.base import SolveBase

SETTINGS: dict[str, frozenset[str]] = {
    "ridge": frozenset(),
    "iterated-ridge": frozenset({"num_iterations"}),
    "gradient-flow": frozenset({"time"}),
    "gradient-descent": frozenset({"num_iterations", "step_size"}),
    "cutoff": frozenset({"threshold", "num_directions"}),
    "transformed": frozenset({"powers", "inverse_laplacian"}),
}
"""By filter, the settings that only some filters have."""


class FilterSolve(SolveBase):
    """A spectral filter: alpha = V h(l) V^T y for the eigenpairs (l, V) of the kernel matrix."""

    kind: Literal["filter"] = "filter"
    filter: Literal["ridge", "iterated-ridge", "gradient-flow", "gradient-descent", "cutoff", "transformed"] = "ridge"
    """``ridge``: 1 / (l + ridge). ``iterated-ridge``: ridge regression on what is left, ``num_iterations`` times.
    ``gradient-flow``: (1 - exp(-time l)) / l. ``gradient-descent``: (1 - (1 - step_size l)^num_iterations) / l, also
    known as Landweber's. ``cutoff``: 1 / l for large eigenvalues, 0 for the others. ``transformed``: ridge regression
    with the kernel s(K), s(l) = sum of pi_p l^p / N^(p - 1), for new samples too."""
    time: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of ``gradient-flow``, in units of one over an eigenvalue."""
    num_iterations: int | None = Field(None, ge=1)
    """Of ``gradient-descent`` and ``iterated-ridge``."""
    step_size: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of ``gradient-descent``, below 2 / largest eigenvalue; 1 / largest eigenvalue if not given."""
    threshold: float | None = Field(None, gt=0, lt=1)
    """Of ``cutoff``: eigenvalues above this share of the largest one are kept."""
    num_directions: int | None = Field(None, ge=1)
    """q, only the largest eigenvalues are computed, and the others taken as zero; all are if not given."""
    powers: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = ()
    """Of ``transformed``: pi_1, pi_2, ..."""
    inverse_laplacian: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Of ``transformed``, in place of powers: pi_p = eta^(p - 1), that is s(l) = l / (1 - eta l / N); below N / largest
    eigenvalue."""
    tolerance: float = Field(1e-6, gt=0)
    """The true relative residual of every target that counts as converged."""
    seed: int = Field(0, ge=0)
    """Of the search for the largest eigenvalues."""

    @model_validator(mode="after")
    def _has_the_settings_of_its_filter(self) -> Self:
        special = frozenset[str]().union(*SETTINGS.values()) - {"num_directions"}
        given = {name for name in special if getattr(self, name) not in (None, ())}
        if extra := sorted(given - SETTINGS[self.filter]):
            raise ValueError(f"filter {self.filter!r} has no {', '.join(extra)}; leave it out.")
        needed = {
            "iterated-ridge": "num_iterations",
            "gradient-flow": "time",
            "gradient-descent": "num_iterations",
        }
        if (name := needed.get(self.filter)) and name not in given:
            raise ValueError(f"filter {self.filter!r} needs {name!r}, found none.")
        if self.filter == "cutoff" and not given and self.num_directions is None:
            raise ValueError("filter 'cutoff' needs 'threshold' or 'num_directions', found neither.")
        if self.filter == "transformed" and len(given) != 1:
            raise ValueError("filter 'transformed' needs either 'powers' or 'inverse_laplacian'.")
        if self.filter == "transformed" and self.powers and not any(self.powers):
            raise ValueError("the powers of filter 'transformed' are all 0; at least one must be above.")
        if self.filter in ("ridge", "iterated-ridge", "transformed") and self.ridge == 0:
            raise ValueError(f"filter {self.filter!r} needs a ridge above 0, found 0; 'cutoff' does without one.")
        return self
