"""The operation seam: what is recorded of a call, and how gradients of its parameters follow from it.

A rule sees batch-major tensors: the input (B L, ...) and the gradients at the output (V, B L, ...), where L counts the
calls' positions that are folded into the batch. It returns one factor per role (``weight``, ``bias``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.routes import LAYOUTS, Layout

Rule = Callable[[torch.Tensor, torch.Tensor, int], Mapping[str, AbstractFactor]]
"""(inputs, deltas, number of samples) to factors by role. Without data the deltas stand for the inputs."""


@dataclass(frozen=True, slots=True)
class Binding:
    """An operation's arguments, sorted by what they are."""

    data: torch.Tensor | None
    """The operand that depends on the sample; None if there is no other operand."""
    parameters: Mapping[str, torch.Tensor]
    """By role; may be parameters, views of parameters, or other tensors, which are not tracked."""
    rule: Rule
    data_axes: int = 1
    """How many of the last axes of the data are features."""
    output_axes: int = 1
    """How many of the last axes of the output are features."""
    layouts: tuple[Layout, ...] = LAYOUTS
    """For which the rule holds."""
    reduces: bool = False
    """Whether the rule sums over positions, so that only gradients of the size of the parameters are kept."""
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Maps the batch-major data to what the rule is given as inputs, once for all output vectors."""


Binder = Callable[..., Binding | None]
"""Takes a call's arguments; None if the call is of no form that a rule covers."""


def per_sample(values: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Return (V, B, L, ...) from (V, B L, ...)."""
    apart: torch.Tensor = values.unflatten(1, (num_samples, -1))
    return apart


def arguments(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name; those that are not given are missing."""
    return dict(zip(names, args, strict=False)) | dict(kwargs)
