"""What each kernel of the configuration means, in terms of the Jacobian engine."""

from dataclasses import dataclass

from ntkpipe.configs.kernels import parse_kind
from ntkpipe.workers.jacobians.functionals import Functional


@dataclass(frozen=True, slots=True)
class KernelDefinition:
    """A kernel as an output functional with a normalisation."""

    functional: Functional | None
    """Which outputs are differentiated; None for a kernel of activations."""
    cosine: bool = False
    """Whether K(x, x') is divided by sqrt(K(x, x) K(x', x'))."""
    per_output: bool = False
    """Whether rows and columns are (sample, output) pairs instead of samples."""


def kernel_definition(kind: str) -> KernelDefinition:
    """Return what a kernel's name means.

    Raises:
        ConfigError: There is no such kernel.
    """
    name, number = parse_kind(kind)
    match name:
        case "trntk0":
            return KernelDefinition(Functional("trace"))
        case "trntk":
            return KernelDefinition(Functional("trace"), cosine=True)
        case "full":
            return KernelDefinition(Functional("trace"), per_output=True)
        case "pntk":
            return KernelDefinition(Functional("sum"))
        case "lpntk":
            return KernelDefinition(Functional("signs"))
        case "class":
            return KernelDefinition(Functional("class", index=number))
        case "probe":
            return KernelDefinition(Functional("probes", index=number))
        case "true_class" | "loss" | "margin" | "cotangents":
            return KernelDefinition(Functional(name))
    return KernelDefinition(None)
