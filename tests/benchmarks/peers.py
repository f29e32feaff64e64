"""Dense random projections of other packages, on the gradients that make proj-trNTK."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from benchmarks.contraction import split_state

BATCH_SIZE = 500
"""Gradients per call. Both packages draw the whole matrix again in each call, so that small batches would flatter us."""

Projector = Callable[[torch.Tensor], torch.Tensor]
"""Takes (B, P) gradients, returns (B, K)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A package that projects gradients."""

    package: str
    """The name to import."""
    title: str
    """How the report calls it."""
    make: Callable[[int, int, torch.device], Projector]
    """Takes P, K and the device."""

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.package) is not None


def per_sample_gradients(model: nn.Module, inputs: torch.Tensor, output: int = 0) -> torch.Tensor:
    """Return (N, P) gradients of one output by ``vmap(grad)``."""
    trainable, other = split_state(model)

    def output_of(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        outputs_1C: torch.Tensor = functional_call(model, (parameters, other), (sample[None],))
        return outputs_1C[0, output]

    gradients = vmap(partial(grad(output_of), trainable))(inputs)
    return torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)


def _traker(num_parameters: int, dim: int, device: torch.device) -> Projector:
    from trak.projectors import BasicProjector, ProjectionType

    kind = ProjectionType.rademacher
    return partial(BasicProjector(num_parameters, dim, seed=0, proj_type=kind, device=device).project, model_id=0)


def _dattri(num_parameters: int, dim: int, device: torch.device) -> Projector:
    from dattri.func.projection import BasicProjector, ProjectionType

    kind = ProjectionType.rademacher
    return partial(BasicProjector(num_parameters, dim, seed=0, proj_type=kind, device=device).project, ensemble_id=0)


PEERS = (
    Peer("trak", "traker BasicProjector", _traker),
    Peer("dattri", "dattri BasicProjector", _dattri),
)
