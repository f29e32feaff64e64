"""Routes to the gradients of a parameter. Plain data: importing this module needs no torch."""

import math
from dataclasses import dataclass
from typing import Literal

Route = Literal["captured", "vmap", "loop"]
"""``captured`` from recorded operations, ``vmap`` by torch.func, ``loop`` one sample at a time; cheapest first."""

Layout = Literal["batch-first", "batch-second", "shared"]
"""Where the batch is in what the operations of a captured parameter see. ``shared``: nowhere, it is the same for all
samples, such as position embeddings; captured behind an expansion over the batch."""

LAYOUTS: tuple[Layout, ...] = ("batch-first", "batch-second", "shared")


@dataclass(frozen=True, slots=True)
class ParameterRoute:
    """How one parameter is covered."""

    name: str
    shape: tuple[int, ...]
    route: Route
    layout: Layout = "batch-first"

    @property
    def numel(self) -> int:
        """Size of the parameter."""
        return math.prod(self.shape)

    @property
    def description(self) -> str:
        """What a person reads: the route, and the layout where it is not the usual one."""
        return self.route if self.layout == "batch-first" else f"{self.route}, {self.layout}"
