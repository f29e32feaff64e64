"""The samples of one split, in memory or behind a map-style data set."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs with their labels and stable ids; what a data callable returns. NumPy arrays are taken for tensors.

    A callable may also return any map-style ``torch.utils.data.Dataset`` of ``(input, label)`` pairs or inputs.
    """

    inputs: torch.Tensor
    """(N, ...) model inputs."""
    labels: torch.Tensor | None = None
    """(N,) integer classes, or (N, T) real targets."""
    ids: tuple[str, ...] | None = None
    """(N,) unique, non-empty names; positions are used when there are none."""
    texts: tuple[str, ...] | None = None
    """(N,) shown to people instead of the inputs, such as the text behind tokens; no kernel, and no digest, knows them."""
