"""What each kernel of a model means, in terms of the Jacobian engine."""

from dataclasses import dataclass
from typing import Literal

from ntkpipe.configs.kernels.empirical import parse_kind
from ntkpipe.workers.jacobians.functionals import Functional

Activations = Literal["penultimate", "outputs", "modules"]
Entries = Literal["gradients", "signs"]


@dataclass(frozen=True, slots=True)
class KernelDefinition:
    """A kernel as an inner product of gradients or activations, with a normalisation."""

    source: Functional | Activations
    """Which outputs are differentiated, or which activations are multiplied."""
    cosine: bool = False
    """Whether K(x, x') is divided by sqrt(K(x, x) K(x', x'))."""
    per_output: bool = False
    """Whether rows and columns are (sample, output) pairs instead of samples."""
    row_entries: Entries = "gradients"
    """What the rows contribute."""
    column_entries: Entries = "gradients"
    """What the columns contribute."""

    @property
    def functional(self) -> Functional | None:
        """Which outputs are differentiated; None for a kernel of activations."""
        return self.source if isinstance(self.source, Functional) else None

    @property
    def is_own_feature(self) -> bool:
        """Whether what is multiplied is so small that it is stored as the kernel's features."""
        return self.source in ("penultimate", "outputs")


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
        case "signgd":
            return KernelDefinition(Functional("sum"), row_entries="signs", column_entries="signs")
        case "signgd_asym":
            return KernelDefinition(Functional("sum"), row_entries="signs")
        case "ck":
            return KernelDefinition("penultimate")
        case "nngp":
            return KernelDefinition("outputs")
        case "em":
            return KernelDefinition("modules")
        case "true_class" | "loss" | "margin" | "cotangents":
            return KernelDefinition(Functional(name))
