"""Kernels of a model: which outputs are differentiated, with respect to which parameters."""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, model_validator

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.configs.kernels.names import CLOSED_FORMS, DERIVED, RANDOM_FEATURES
from ntkpipe.configs.kernels.precondition import Precondition
from ntkpipe.configs.projection import Projection

KernelName = Literal[
    "trntk0",
    "trntk",
    "pntk",
    "lpntk",
    "class",
    "true_class",
    "loss",
    "margin",
    "probe",
    "signgd",
    "signgd_asym",
    "full",
    "cotangents",
    "ck",
    "em",
    "nngp",
]
NUMBERED = ("class", "probe")
"""Kernels whose name ends in a number: ``class:3``, ``probe:8``."""

LIBRARY_ONLY = ("cotangents",)
"""Kernels of :func:`ntkpipe.kernel_matrix` that a run does not store."""

ACTIVATIONS = ("ck", "em", "nngp")
"""Kernels of what the model computes on its way; nothing is differentiated."""

OWN_FEATURES = ("ck", "nngp")
"""Kernels whose features are stored as they are, without a projection."""

SIGNS = ("signgd", "signgd_asym")
"""Kernels of signs of gradients, which no random projection can estimate."""


def _spelled() -> list[str]:
    return [f"{known}:<number>" if known in NUMBERED else known for known in get_args(KernelName)]


def parse_kind(kind: str) -> tuple[KernelName, int]:
    """Return the name and number of a kernel of a model; 0 for kernels without one.

    Raises:
        ConfigError: There is no such kernel.
    """
    name, colon, number = kind.partition(":")
    if kind in (*CLOSED_FORMS, *RANDOM_FEATURES, *DERIVED):
        raise ConfigError(
            f"kernel {kind!r} is no kernel of a model. Use ntkpipe.closed_form or ntkpipe.random_features for kernels that "
            "need none; transforms of kernels are for runs."
        )
    if name not in get_args(KernelName) or bool(colon) != (name in NUMBERED):
        raise ConfigError(unknown_name("kernel", kind, _spelled()))
    if colon and (not re.fullmatch(r"\d{1,9}", number) or (name == "probe" and int(number) == 0)):
        raise ConfigError(f"kernel {kind!r}: {number!r} is no valid number; write {name}:3, for example.")
    return name, int(number or 0)  # type: ignore[return-value]


def _stored_kind(kind: str) -> str:
    if kind.partition(":")[0] not in get_args(KernelName):
        raise ValueError(unknown_name("kernel", kind, [*_spelled(), *CLOSED_FORMS, *RANDOM_FEATURES, *DERIVED]))
    name, _ = parse_kind(kind)
    if name in LIBRARY_ONLY:
        raise ValueError(f"kernel {kind!r} is not stored in runs; compute it with ntkpipe.kernel_matrix")
    return kind


class EmpiricalKernel(KernelSection):
    """One kernel of the run's model; all of them share a single pass over the data.

    With J_c(x) the gradient of output c at sample x, y its class and f its outputs:

    ===============  ===================================================================  ==================
    kind             K(x, x')                                                             backward passes
    ===============  ===================================================================  ==================
    trntk0           sum_c <J_c(x), J_c(x')>                                              C
    trntk            trntk0(x, x') / sqrt(trntk0(x, x) trntk0(x', x'))                    C
    probe:<m>        trntk0 estimated by m orthogonal probes, exact for m >= C            m
    pntk             <sum_c J_c(x), sum_c J_c(x')>, no 1/C                                1
    lpntk            1/C <sum_c s_c J_c(x), sum_c s'_c J_c(x')>, s = +1 at y, else -1     1
    class:<c>        <J_c(x), J_c(x')>                                                    1
    true_class       <J_y(x), J_y'(x')>                                                   1
    loss             inner product of the gradients of the loss                           1
    margin           inner product of the gradients of log(p_y / (1 - p_y))               1
    full             <J_c(x), J_c'(x')>: rows and columns are (sample, output) pairs      C
    signgd           <sign g(x), sign g(x')>, g = sum_c J_c                               1
    signgd_asym      <sign g(x), g(x')>, not symmetric                                    1
    ck               inner product of the penultimate activations                         0
    em               inner product of the outputs of all leaf modules                     0
    nngp             <f(x), f(x')>                                                        0
    ===============  ===================================================================  ==================

    ``loss`` is the cross-entropy for classes, half the squared error for real targets.
    """

    kind: Annotated[str, AfterValidator(_stored_kind)]
    projection: Projection | None = None
    """Overrides the run's projection for this kernel. ``ck``, ``nngp``, ``full`` and kernels of signs are always exact."""
    layerwise: bool = False
    """Also store one component per named parameter (``em``: per module); components sum to the kernel. A projected
    kernel is then estimated from ``dim`` features per parameter instead of ``dim`` altogether."""
    parameters: tuple[str, ...] | dict[str, float] | None = None
    """Shell-style patterns of the parameters to differentiate, such as ``*.bias`` or ``*lora_*``; ``last:2`` stands for
    the parameters of the last two modules that have any, in the order in which the model calls them. A mapping gives
    weights: K is the sum of weight times component, a parameter's weight being that of the first pattern it matches.
    None takes all trainable ones."""
    modules: tuple[str, ...] | None = None
    """Patterns of the leaf modules of ``em``; None takes all of them. Those that were found are recorded in the run."""
    precondition: Precondition | None = None
    """Scale gradients by second moments, as Adam does."""
    cross: tuple[str, str] | None = None
    """Members of the model for rows and for columns: K(x, x') of x seen by one and x' by the other; not symmetric."""

    @model_validator(mode="after")
    def _options_fit_the_kind(self) -> "EmpiricalKernel":
        name, _ = parse_kind(self.kind)
        if name in ACTIVATIONS and self.parameters is not None:
            raise ValueError(f"kernel {self.kind!r} differentiates nothing, so it has no parameters to choose")
        if name in ACTIVATIONS and self.precondition is not None:
            raise ValueError(f"kernel {self.kind!r} differentiates nothing, so there is nothing to precondition")
        if name in ("ck", "nngp") and self.layerwise:
            raise ValueError(f"kernel {self.kind!r} has no parameters, so it cannot be layerwise")
        if name != "em" and self.modules is not None:
            raise ValueError(f"kernel {self.kind!r} has no modules to choose; they are an option of em")
        if name == "full" and self.layerwise:
            raise ValueError("kernel 'full' cannot be layerwise; choose parameters instead")
        if name in (*SIGNS, "full", "ck", "nngp") and self.projection is not None and self.projection.kind != "none":
            raise ValueError(f"kernel {self.kind!r} is always exact; leave its projection out")
        if self.cross is not None and self.layerwise:
            raise ValueError("a kernel between two members has no components; leave layerwise out")
        if self.cross is not None and self.cross[0] == self.cross[1]:
            raise ValueError(
                f"cross names member {self.cross[0]!r} twice; its own kernel needs no cross: ask for NAME@{self.cross[0]}"
            )
        if isinstance(self.parameters, dict) and any(weight < 0 for weight in self.parameters.values()):
            raise ValueError("weights of parameters must not be negative: the kernel would not be positive")
        if self.parameters is not None and not self.parameters:
            raise ValueError("parameters is empty; leave it out to take all")
        return self

    def semantic(self) -> dict[str, Any]:
        """Return the fields that determine the numbers; weights as pairs, because the first pattern that matches wins."""
        found = super().semantic()
        if isinstance(self.parameters, dict):
            found["parameters"] = [[pattern, weight] for pattern, weight in self.parameters.items()]
        return found

    @property
    def always_exact(self) -> bool:
        """Whether the run's projection does not apply."""
        return parse_kind(self.kind)[0] in (*SIGNS, "full", "ck", "nngp")
