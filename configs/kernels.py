"""Which kernels a run computes."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from ntkpipe.configs.base import Section, unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.projection import Projection

KernelName = Literal[
    "trntk0", "trntk", "pntk", "lpntk", "class", "true_class", "loss", "margin", "probe", "full", "cotangents", "ck"
]
NUMBERED = ("class", "probe")
"""Kernels whose name ends in a number: ``class:3``, ``probe:8``."""

LIBRARY_ONLY = ("full", "cotangents")
"""Kernels of :func:`ntkpipe.kernel_matrix` that a run does not store."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*$"
"""What kernels, solutions, splits and runs may be called: safe as a folder name and in a URL."""


def parse_kind(kind: str) -> tuple[KernelName, int]:
    """Return a kernel's name and number; 0 for kernels without one.

    Raises:
        ConfigError: There is no such kernel.
    """
    name, colon, number = kind.partition(":")
    valid = [f"{known}:<number>" if known in NUMBERED else known for known in get_args(KernelName)]
    if name not in get_args(KernelName) or bool(colon) != (name in NUMBERED):
        raise ConfigError(unknown_name("kernel", kind, valid))
    if colon and (not re.fullmatch(r"\d{1,9}", number) or (name == "probe" and int(number) == 0)):
        raise ConfigError(f"kernel {kind!r}: {number!r} is no valid number; write {name}:3, for example.")
    return name, int(number or 0)  # type: ignore[return-value]


def _stored_kind(kind: str) -> str:
    name, _ = parse_kind(kind)
    if name in LIBRARY_ONLY:
        raise ValueError(f"kernel {kind!r} is not stored in runs; compute it with ntkpipe.kernel_matrix")
    return kind


class KernelConfig(Section):
    """One kernel of the run; all kernels of a run share a single pass over the data.

    With J_c(x) the gradient of output c at sample x, y its class and f its outputs:

    ==============  ====================================================================  ==================
    kind            K(x, x')                                                              backward passes
    ==============  ====================================================================  ==================
    trntk0          sum_c <J_c(x), J_c(x')>                                               C
    trntk           trntk0(x, x') / sqrt(trntk0(x, x) trntk0(x', x'))                     C
    probe:<m>       trntk0 estimated by m orthogonal probes, exact for m >= C             m
    pntk            <sum_c J_c(x), sum_c J_c(x')>, no 1/C                                 1
    lpntk           1/C <sum_c s_c J_c(x), sum_c s'_c J_c(x')>, s = +1 at y, else -1      1
    class:<c>       <J_c(x), J_c(x')>                                                     1
    true_class      <J_y(x), J_y'(x')>                                                    1
    loss            inner product of the gradients of the loss                            1
    margin          inner product of the gradients of log(p_y / (1 - p_y))                1
    ck              inner product of the penultimate activations                          0
    ==============  ====================================================================  ==================

    ``loss`` is the cross-entropy for classes, half the squared error for real targets.
    """

    kind: Annotated[str, AfterValidator(_stored_kind)]
    name: str = Field("", pattern=f"{NAME_PATTERN}|^$")
    """How the kernel is stored and asked for; the kind unless two kernels of one kind differ."""
    projection: Projection | None = None
    """Overrides the run's projection for this kernel. ``ck`` is always exact."""
    layerwise: bool = False
    """Also store one component per named parameter; components sum to the kernel. A projected kernel is then estimated
    from ``dim`` features per parameter instead of ``dim`` altogether."""

    @property
    def label(self) -> str:
        """The name under which the kernel is stored; a hyphen for the colon of ``class:3``."""
        return self.name or self.kind.replace(":", "-")
