"""How much memory a batch takes, measured on two samples before the work starts."""

from collections.abc import Sequence

import torch
from torch import nn

from ntkpipe.workers.jacobians.engine import JacobianEngine, Portion
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.passes import Footprint


def measure_footprint(engine: JacobianEngine, inputs: torch.Tensor, modules: Sequence[str] = ()) -> Footprint:
    """Measure what a pass over few samples leaves behind.

    Args:
        engine: Over the model.
        inputs: One or two samples.
        modules: Names of modules whose outputs are kept too.
    """
    inputs = inputs.clone()  # a view would count for all of the samples that it is a part of
    graph, held, deltas = (_Storages(engine.model) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(graph.add, lambda tensor: tensor):
        capture = engine.capture(inputs, modules)
    jacobian = engine.run(inputs, Portion(frozenset({Functional("sum")})), capture=capture)
    (factors,) = jacobian.factors.values()
    for factor in factors.values():
        saw, gradients = factor.tensors()
        for tensors, storages in ((saw, held), (gradients, deltas)):
            for tensor in tensors:
                storages.add(tensor)
    for value in capture.activations.values():
        held.add(value)
    num, itemsize = len(inputs), jacobian.outputs_BC.itemsize
    all_outputs, largest = capture.output_numbers()
    unfolded = max((factor.unfolded_numbers for factor in factors.values()), default=0)
    return Footprint(
        graph_bytes=graph.num_bytes // num,
        input_bytes=held.num_bytes // num,
        new_input_bytes=held.num_bytes_beside(graph) // num,
        vector_bytes=deltas.num_bytes // num,
        output_bytes=all_outputs * itemsize // num,
        call_bytes=largest * itemsize // num,
        output_vector_bytes=jacobian.outputs_BC.shape[1] * itemsize,
        unfolded_bytes=unfolded * itemsize // num,
    )


class _Storages:
    """Adds up memory, parameters aside and every storage once."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._tensors: dict[int, torch.Tensor] = {}

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count a tensor, and keep it alive, so that its address is not taken by another one."""
        address = tensor.untyped_storage().data_ptr()
        if address not in self._parameters:
            self._tensors.setdefault(address, tensor.detach())
        return tensor

    @property
    def num_bytes(self) -> int:
        """Of all storages."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors.values())

    def num_bytes_beside(self, other: "_Storages") -> int:
        """Of the storages that the other one does not count."""
        return sum(
            tensor.untyped_storage().nbytes()
            for address, tensor in self._tensors.items()
            if address not in other._tensors
        )
