"""The floor: what no method can avoid that computes Jacobian kernels or features by reverse-mode differentiation."""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from benchmarks.measure import timed


class DataOnlyFloor:
    """One forward pass per batch, and one data-only backward pass for each output vector.

    Exactly this happens, on a copy of the model, and nothing of ntkpipe takes part:

    * All parameters are frozen with ``requires_grad_(False)``, so that no backward pass computes a weight gradient.
    * The outputs of all modules that own trainable parameters (linear layers, convolutions, norms, embeddings) are
      recorded during the forward pass, which builds the autograd graph.
    * For every output vector v, one ``torch.autograd.grad(outputs, recorded, grad_outputs=v)`` yields the gradients of
      <v, f(x)> in all recorded layer outputs, for the whole batch. These and the layers' inputs determine the
      per-sample gradients of all parameters. They are dropped at once: nothing is copied, stored, projected or
      multiplied.
    * Inputs of floating point require gradients only so that the graph reaches the first layer. Gradients are asked for
      at layer outputs, so the backward of the first layer (its data gradient) is never run. Token ids need no
      gradient: the outputs of embeddings are detached from their weights and are leaves themselves.

    With F the floating-point operations of a forward pass and F_1 those of the first layer, V output vectors cost
    F + V (F - F_1).
    """

    def __init__(self, model: nn.Module, vectors_VC: torch.Tensor) -> None:
        self._vectors_VC = vectors_VC
        self._recorded: list[torch.Tensor] = []
        own = copy.deepcopy(model)
        tracked = [m for m in own.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
        self._model = own.requires_grad_(False)
        for module in tracked:
            module.register_forward_hook(self._record)

    def run(self, inputs: torch.Tensor, batch_size: int) -> None:
        """Do the work for all samples and keep nothing."""
        for batch in inputs.split(batch_size):
            for _ in self.layer_gradients(batch):
                pass

    def layer_gradients(self, batch: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the gradients in all recorded layer outputs, in order of the forward pass, once per output vector."""
        self._recorded.clear()
        if batch.is_floating_point():
            batch = batch.detach().requires_grad_()
        with torch.enable_grad():
            outputs_BC: torch.Tensor = self._model(batch)
        recorded = tuple(self._recorded)
        self._recorded.clear()
        last = len(self._vectors_VC) - 1
        for index, vector_C in enumerate(self._vectors_VC):
            yield torch.autograd.grad(
                outputs_BC, recorded, grad_outputs=vector_C.expand_as(outputs_BC), retain_graph=index < last
            )

    def _record(self, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        self._recorded.append(output)
        return output


def trace_vectors(num_outputs: int, like: torch.Tensor) -> torch.Tensor:
    """Return the (C, C) output vectors of the traced kernels: each output on its own."""
    return torch.eye(num_outputs, dtype=like.dtype, device=like.device)


def sum_vectors(num_outputs: int, like: torch.Tensor) -> torch.Tensor:
    """Return the (1, C) output vector of pNTK: the sum of all outputs."""
    return torch.ones(1, num_outputs, dtype=like.dtype, device=like.device)


def fastest_batch_size(floor: DataOnlyFloor, inputs: torch.Tensor, choices: Sequence[int] = (8, 32, 128, 512)) -> int:
    """Return the batch size at which the floor is lowest, of the choices up to N; N itself when there are none."""
    fitting = [choice for choice in choices if choice <= len(inputs)] or [len(inputs)]
    floor.run(inputs[: fitting[0]], fitting[0])  # warm
    return min(fitting, key=lambda size: timed(lambda: floor.run(inputs, size), inputs.device)[1])
