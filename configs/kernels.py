"""Which kernels a run computes."""

from typing import Literal

from pydantic import Field

from ntkpipe.configs.base import Section
from ntkpipe.configs.projection import Projection

KernelKind = Literal["trntk0", "trntk", "pntk", "ck"]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*$"
"""What kernels, solutions, splits and runs may be called: safe as a folder name and in a URL."""


class KernelConfig(Section):
    """One kernel of the run; all kernels of a run share a single pass over the data.

    With J_c(x) the gradient of output c at sample x:

    ========  ====================================================  ==================
    kind      K(x, x')                                              backward passes
    ========  ====================================================  ==================
    trntk0    sum_c <J_c(x), J_c(x')>                               C
    trntk     trntk0(x, x') / sqrt(trntk0(x, x) trntk0(x', x'))     C
    pntk      <sum_c J_c(x), sum_c J_c(x')>, no 1/C                 1
    ck        inner product of the penultimate activations          0
    ========  ====================================================  ==================
    """

    kind: KernelKind
    name: str = Field("", pattern=f"{NAME_PATTERN}|^$")
    """How the kernel is stored and asked for; the kind unless two kernels of one kind differ."""
    projection: Projection | None = None
    """Overrides the run's projection for this kernel. ``ck`` is always exact."""
    layerwise: bool = False
    """Also store one component per named parameter; components sum to the kernel. A projected kernel is then estimated
    from ``dim`` features per parameter instead of ``dim`` altogether."""

    @property
    def label(self) -> str:
        """The name under which the kernel is stored."""
        return self.name or self.kind
