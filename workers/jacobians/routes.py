"""Routes to the gradients of a parameter. Plain data: importing this module needs no torch."""

import math
from dataclasses import dataclass
from typing import Literal

Route = Literal["captured", "vmap", "loop"]
"""``captured`` from layer factors, ``vmap`` by torch.func, ``loop`` one sample at a time; cheapest first."""


@dataclass(frozen=True, slots=True)
class ParameterRoute:
    """How one parameter is covered."""

    name: str
    shape: tuple[int, ...]
    route: Route

    @property
    def numel(self) -> int:
        """Size of the parameter."""
        return math.prod(self.shape)
