"""One forward pass that records what operations saw, and backward passes that never touch a weight.

The gradient of v . f with respect to the weight of y = W a is sum_t delta_t a_t^T with delta = d(v . f)/dy. It needs the
operation's input and the gradient at its output, but no weight gradient. Only the gradients at recorded outputs are
asked of autograd, so it runs data-only backward passes although the parameters stay trainable; nothing of the user's
model is changed.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import nn
from torch.autograd.graph import GradientEdge

from ntkpipe.configs.errors import CoverageError
from ntkpipe.workers.jacobians.activations import ActivationRecorder
from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.interception import Call, Gradients, Interceptor
from ntkpipe.workers.jacobians.routes import Layout


@final
class Capture:
    """The outputs of a batch together with the recorded uses of all tracked parameters.

    Args:
        model: To be run.
        layouts: Of the tracked parameters.
        inputs: (B, ...).
        modules: Names of modules whose outputs are wanted.

    Attributes:
        activations: (B, D) outputs of those modules, by call.
        outputs_BC: Outputs of the model, attached to the graph.
        penultimate_BD: Input of the last Linear layer, if its output is the model's output; None otherwise.
        misfits: Tracked parameters that were used in a way that does not fit their layout.
    """

    def __init__(
        self,
        model: nn.Module,
        layouts: Mapping[nn.Parameter, Layout],
        inputs: torch.Tensor,
        modules: Sequence[str] = (),
    ) -> None:
        last_linear: list[tuple[torch.Tensor, torch.Tensor, int]] = []

        def record(
            module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: torch.Tensor
        ) -> None:
            given: torch.Tensor = arguments[0] if arguments else keywords["input"]
            last_linear[:] = [(given.detach(), output, output._version)]

        handles = [
            module.register_forward_hook(record, with_kwargs=True)
            for module in model.modules()
            if isinstance(module, nn.Linear)
        ]
        interceptor = Interceptor(layouts, len(inputs))
        try:
            with torch.enable_grad(), interceptor, ActivationRecorder(model, modules, len(inputs)) as recorder:
                outputs = model(inputs)
        finally:
            for handle in handles:
                handle.remove()
        self.activations = recorder.outputs
        self.misfits = interceptor.misfits
        self.outputs_BC = check_outputs(outputs, len(inputs))
        self._calls: list[Call] = interceptor.calls
        self._tracked = frozenset(layouts)
        self.penultimate_BD: torch.Tensor | None = None
        if last_linear:
            features, output, version = last_linear[0]
            # The same memory, not written since: equal values could be chance, as behind a ReLU.
            same = output.data_ptr() == outputs.data_ptr() and output.numel() == outputs.numel()
            if same and outputs._version == version:
                self.penultimate_BD = features.flatten(1)

    def gradients(self, cotangents_VBC: torch.Tensor, *, batched: bool) -> list[Gradients | None]:
        """Return the gradients of all output vectors at every recorded call: V data-only backward passes.

        None stands for a call that does not fit the layout of its parameters; they join ``misfits``.

        Args:
            cotangents_VBC: The output vectors.
            batched: Go back once for all of them, which saves putting their gradients together.

        Raises:
            RuntimeError: The passes cannot be batched, because an operation has no batching rule.
        """
        if not self._calls:
            return []
        edges = [call.output for call in self._calls]
        prepared = [call.prepared(len(self.outputs_BC)) for call in self._calls]
        if batched:
            return self._kept(_batched_passes(self.outputs_BC, edges, cotangents_VBC), prepared, len(cotangents_VBC))
        columns: list[list[Gradients | None]] = [[] for _ in edges]
        for cotangent_BC in cotangents_VBC:
            found = torch.autograd.grad(self.outputs_BC, edges, cotangent_BC, retain_graph=True, allow_unused=True)
            deltas = [None if delta is None else delta.unsqueeze(0) for delta in found]
            for column, gradients in zip(columns, self._kept(deltas, prepared, 1), strict=True):
                column.append(gradients)
        joined = []
        for column in columns:
            joined.append(_joined(column))
            column.clear()
        return joined

    def _kept(
        self, deltas: Sequence[torch.Tensor | None], prepared: list[torch.Tensor | None], num_vectors: int
    ) -> list[Gradients | None]:
        found = []
        for call, inputs, delta in zip(self._calls, prepared, deltas, strict=True):
            # An operation whose output is thrown away has no gradient; its parameters' gradient is zero.
            given = self.outputs_BC.new_zeros(num_vectors, *call.shape) if delta is None else delta
            found.append(call.gradients(inputs, given, len(self.outputs_BC)))
        return found

    def factors(self, gradients: Sequence[Gradients | None]) -> dict[nn.Parameter, AbstractFactor]:
        """Return one factor per recorded parameter; those of several calls with the same parameter are added up.

        Parameters with a call that does not fit their layout join ``misfits`` and are left out.
        """
        found: dict[nn.Parameter, AbstractFactor] = {}
        for call, given in zip(self._calls, gradients, strict=True):
            if given is None:
                self.misfits |= {use.parameter for use in call.uses.values()}
                continue
            for parameter, factor in call.factors(given, len(self.outputs_BC)).items():
                found[parameter] = found[parameter].plus(factor) if parameter in found else factor
        return {parameter: factor for parameter, factor in found.items() if parameter not in self.misfits}

    def output_numbers(self) -> tuple[int, int]:
        """Return how many numbers the gradients at all recorded outputs have, and those at the largest one kept."""
        kept = [call.shape.numel() for call in self._calls if not call.binding.reduces]
        return sum(call.shape.numel() for call in self._calls), max(kept, default=0)

    def escaped(self) -> set[nn.Parameter]:
        """Return the tracked parameters that the outputs also depend on by a way that was not recorded.

        The graph is walked from the outputs around recorded operations: from their output straight to the operand that
        depends on the sample. A parameter that is still met is used somewhere else, however little it may contribute.
        """
        around = {call.output.node: call.data_node for call in self._calls}
        met: set[nn.Parameter] = set()
        seen, pending = set(), [self.outputs_BC.grad_fn]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if isinstance(variable, nn.Parameter):
                met.add(variable)
            elif node in around:
                pending.append(around[node])
            else:
                pending += [following for following, _ in node.next_functions]
        return met & self._tracked


def _batched_passes(
    outputs_BC: torch.Tensor, edges: Sequence[GradientEdge], cotangents_VBC: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """Return (V, ...) gradients at all edges by one backward pass under vmap."""
    with warnings.catch_warnings():
        # Without a batching rule an operation is looped over with a warning; that is no faster, and may fail later.
        warnings.filterwarnings("error", message="There is a performance drop")
        try:
            return torch.autograd.grad(
                outputs_BC,
                edges,
                cotangents_VBC.contiguous(),
                retain_graph=True,
                is_grads_batched=True,
                allow_unused=True,
            )
        except UserWarning as warning:
            raise RuntimeError(str(warning)) from None


def _joined(column: list[Gradients | None]) -> Gradients | None:
    """Return the gradients of all output vectors of a call from those of one each."""
    fitting = [gradients for gradients in column if gradients is not None]
    if len(fitting) < len(column):
        return None
    first, *others = fitting
    return first if not others else {key: torch.cat([part[key] for part in fitting]) for key in first}


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
