"""One forward pass that records what layers saw, and backward passes that never touch a weight.

The gradient of v . f with respect to the weight of a layer y = W a is sum_t delta_t a_t^T with delta = d(v . f)/dy. It
needs the layer's input and the gradient at the layer's output, but no weight gradient. Only the gradients at recorded
outputs are asked of autograd, so it runs data-only backward passes although the parameters stay trainable; nothing of
the user's model is changed.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.factors import AbstractFactor
from ntkpipe.workers.jacobians.layers import layer_factors


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a recorded layer."""

    module: nn.Module
    inputs: torch.Tensor
    """What the layer was given, (B, ...)."""
    output: GradientEdge
    """Where the gradient at the layer's output is read. An edge, not the tensor: an in-place activation behind the
    layer would rewrite the tensor's history, but not the edge."""
    shape: torch.Size
    """Of the layer's output."""


@final
class Capture:
    """The outputs of a batch together with the calls of all recorded layers.

    Attributes:
        outputs_BC: Outputs of the model, attached to the graph.
        penultimate_BD: Input of the last Linear layer, if its output is the model's output; None otherwise.
    """

    def __init__(self, model: nn.Module, modules: frozenset[nn.Module], inputs: torch.Tensor) -> None:
        self._calls: list[LayerCall] = []
        last_linear: list[tuple[torch.Tensor, torch.Tensor, int]] = []

        def record(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: torch.Tensor
        ) -> None:
            given: torch.Tensor = arguments[0] if arguments else keywords["input"]
            if module in modules and output.requires_grad:
                self._calls.append(LayerCall(module, given.detach(), get_gradient_edge(output), output.shape))
            if isinstance(module, nn.Linear):
                last_linear[:] = [(given.detach(), output, output._version)]

        handles = [
            module.register_forward_hook(record, with_kwargs=True)
            for module in model.modules()
            if module in modules or isinstance(module, nn.Linear)
        ]
        try:
            with torch.enable_grad():
                outputs = model(inputs)
        finally:
            for handle in handles:
                handle.remove()
        self.outputs_BC = check_outputs(outputs, len(inputs))
        self.penultimate_BD: torch.Tensor | None = None
        if last_linear:
            features, output, version = last_linear[0]
            # The same memory, not written since: equal values could be chance, as behind a ReLU.
            same = output.data_ptr() == outputs.data_ptr() and output.numel() == outputs.numel()
            if same and outputs._version == version:
                self.penultimate_BD = features.flatten(1)

    def deltas(self, cotangents_VBC: torch.Tensor) -> list[torch.Tensor]:
        """Return d(v . f)/dy of every recorded call, (V, B, ...) each: V data-only backward passes."""
        if not self._calls:
            return []
        edges = [call.output for call in self._calls]
        columns: list[list[torch.Tensor]] = [[] for _ in edges]
        for cotangent_BC in cotangents_VBC:
            gradients = torch.autograd.grad(self.outputs_BC, edges, cotangent_BC, retain_graph=True, allow_unused=True)
            for call, column, gradient in zip(self._calls, columns, gradients, strict=True):
                # A layer whose output is thrown away has no gradient; its parameters' gradient is zero.
                column.append(cotangent_BC.new_zeros(call.shape) if gradient is None else gradient)
        return [torch.stack(column) for column in columns]

    def num_calls(self) -> Counter[nn.Parameter]:
        """Return how often each parameter was used by a recorded call."""
        return Counter(parameter for call in self._calls for parameter in call.module.parameters(recurse=False))

    def num_uses(self) -> Counter[nn.Parameter]:
        """Return how often each parameter was used at all: edges of the autograd graph that end in it."""
        uses: Counter[nn.Parameter] = Counter()
        seen, pending = set(), [self.outputs_BC.grad_fn]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            for following, _ in node.next_functions:
                variable = getattr(following, "variable", None)
                if isinstance(variable, nn.Parameter):
                    uses[variable] += 1
                else:
                    pending.append(following)
        return uses

    def misaligned(self) -> set[nn.Module]:
        """Return the recorded modules that were called with something else than the batch as leading dimension."""
        num_samples = len(self.outputs_BC)
        return {
            call.module
            for call in self._calls
            if len(call.inputs) != num_samples or call.shape[0] != num_samples or call.inputs.dim() < 2
        }

    def factors(self, names: dict[nn.Parameter, str], deltas: list[torch.Tensor]) -> dict[str, AbstractFactor]:
        """Return one factor per named parameter; those of several calls with the same parameter are added up."""
        factors: dict[str, AbstractFactor] = {}
        for call, delta in zip(self._calls, deltas, strict=True):
            by_role = layer_factors(call.module, call.inputs, delta)
            for role, parameter in call.module.named_parameters(recurse=False):
                name = names.get(parameter)
                if name is not None and role in by_role:
                    factors[name] = factors[name].plus(by_role[role]) if name in factors else by_role[role]
        return factors


def check_outputs(outputs: object, num_samples: int) -> torch.Tensor:
    """Return the outputs as (B, C).

    Raises:
        CoverageError: The model returns something other than one real vector per sample.
    """
    if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
        raise CoverageError(
            f"the model returns {type(outputs).__name__}; expected one real tensor of shape (B, C). "
            "Wrap the model so that it returns the outputs whose kernel is wanted."
        )
    if outputs.dim() == 1:
        outputs = outputs.unsqueeze(1)
    if outputs.dim() != 2 or len(outputs) != num_samples:
        raise CoverageError(
            f"the model returns shape {tuple(outputs.shape)} for {num_samples} samples; expected ({num_samples}, C)."
        )
    return outputs
