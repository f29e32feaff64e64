"""From a batch of inputs to the gradient factors of every parameter, for all output functionals in one pass."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import nn

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.capture import Capture
from ntkpipe.workers.jacobians.coverage import recorded_modules
from ntkpipe.workers.jacobians.factors import AbstractFactor, DenseFactor
from ntkpipe.workers.jacobians.fallback import looped_gradients, vectorised_gradients
from ntkpipe.workers.jacobians.routes import ParameterRoute

Functional = Literal["trace", "sum"]
"""``trace`` keeps every output (V = C); ``sum`` adds them up (V = 1)."""


@dataclass(frozen=True, slots=True)
class BatchJacobian:
    """Everything one pass over a batch gives."""

    outputs_BC: torch.Tensor
    penultimate_BD: torch.Tensor | None
    """Input of the final Linear layer, None if the model does not end in one."""
    factors: dict[Functional, dict[str, AbstractFactor]]
    """Per functional and parameter name, in the order of the routes."""


@final
class JacobianEngine:
    """Computes gradient factors along the routes that were found for a model.

    One forward pass and one data-only backward pass per output vector serve all functionals: with the trace among
    them, the others are linear combinations of its output gradients.
    """

    def __init__(self, model: nn.Module, routes: Sequence[ParameterRoute]) -> None:
        self._model = model
        self._names = [route.name for route in routes]
        by_route = {
            kind: [route.name for route in routes if route.route == kind] for kind in ("captured", "vmap", "loop")
        }
        self._vmap, self._loop = by_route["vmap"], by_route["loop"]
        self._modules = recorded_modules(model, by_route["captured"])
        captured = set(by_route["captured"])
        self._captured = {parameter: name for name, parameter in model.named_parameters() if name in captured}

    def run(self, inputs: torch.Tensor, functionals: Collection[Functional]) -> BatchJacobian:
        """Compute the factors of all parameters for a batch; memory is O(batch).

        Raises:
            CoverageError: The model's path through its layers depends on the samples.
        """
        capture = Capture(self._model, self._modules, inputs)
        if capture.misaligned():
            raise _other_path("a layer is fed something other than the batch")
        outputs_BC = capture.outputs_BC.detach()
        if not functionals:
            return BatchJacobian(outputs_BC, capture.penultimate_BD, {})
        base: Functional = "trace" if "trace" in functionals else "sum"
        base_cotangents = cotangents(base, outputs_BC)
        base_deltas = capture.deltas(base_cotangents)
        base_gradients = self._other_gradients(inputs, base_cotangents)
        factors: dict[Functional, dict[str, AbstractFactor]] = {}
        for functional in sorted(functionals):
            deltas, gradients = base_deltas, base_gradients
            if functional != base:
                weights_VBC = cotangents(functional, outputs_BC)
                deltas = [_combine(weights_VBC, delta) for delta in base_deltas]
                gradients = {name: _combine(weights_VBC, value) for name, value in base_gradients.items()}
            found = capture.factors(self._captured, deltas)
            found |= {name: DenseFactor(value) for name, value in gradients.items()}
            for name in self._names:
                if name not in found:
                    raise _other_path(f"parameter {name!r} is not used")
            factors[functional] = {name: found[name] for name in self._names}
        return BatchJacobian(outputs_BC, capture.penultimate_BD, factors)

    def _other_gradients(self, inputs: torch.Tensor, cotangents_VBC: torch.Tensor) -> dict[str, torch.Tensor]:
        gradients: dict[str, torch.Tensor] = {}
        if self._vmap:
            gradients |= vectorised_gradients(self._model, self._vmap, inputs, cotangents_VBC)
        if self._loop:
            gradients |= looped_gradients(self._model, self._loop, inputs, cotangents_VBC)
        return gradients


def cotangents(functional: Functional, outputs_BC: torch.Tensor) -> torch.Tensor:
    """Return the (V, B, C) output vectors of a functional."""
    num_samples, num_outputs = outputs_BC.shape
    if functional == "sum":
        return outputs_BC.new_ones(1, num_samples, num_outputs)
    identity = torch.eye(num_outputs, dtype=outputs_BC.dtype, device=outputs_BC.device)
    return identity.unsqueeze(1).expand(num_outputs, num_samples, num_outputs)


def _combine(weights_VBC: torch.Tensor, values_CB: torch.Tensor) -> torch.Tensor:
    """Return sum_c weights[v, b, c] values[c, b, ...], shape (V, B, ...)."""
    return torch.einsum("vbc,cb...->vb...", weights_VBC, values_CB)


def _other_path(where: str) -> CoverageError:
    return CoverageError(
        f"for some samples {where}, unlike for those on which the gradients were checked: the model's path depends on "
        "its input, which the captured route cannot follow."
    )
