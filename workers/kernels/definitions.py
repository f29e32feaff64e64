"""What each kernel of the configuration means, in terms of the Jacobian engine."""

from dataclasses import dataclass

from ntkpipe.configs.kernels import KernelKind
from ntkpipe.workers.jacobians.engine import Functional


@dataclass(frozen=True, slots=True)
class KernelDefinition:
    """A kernel as an output functional with a normalisation."""

    functional: Functional | None
    """Which outputs are differentiated; None for a kernel of activations."""
    cosine: bool
    """Whether K(x, x') is divided by sqrt(K(x, x) K(x', x'))."""


DEFINITIONS: dict[KernelKind, KernelDefinition] = {
    "trntk0": KernelDefinition("trace", cosine=False),
    "trntk": KernelDefinition("trace", cosine=True),
    "pntk": KernelDefinition("sum", cosine=False),
    "ck": KernelDefinition(None, cosine=False),
}
