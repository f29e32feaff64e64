"""Watching a forward pass: which operations use which parameters.

PyTorch hands every function call to an active function mode, whether it comes from a module or from the model's own
code. Operations that have a rule and use a tracked parameter (or a view of one) are recorded: the operand that depends
on the sample, and the edge of the autograd graph behind which the gradient at the output can be read.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.factors.rows import RowFactor
from ntkpipe.workers.jacobians.layouts import batch_major, expanded
from ntkpipe.workers.jacobians.operations.base import Binding
from ntkpipe.workers.jacobians.operations.registry import OPERATIONS
from ntkpipe.workers.jacobians.routes import LAYOUTS, Layout

OUTPUT = "output"

Gradients = Mapping[str, torch.Tensor]
"""Of a call, (V, B L, ...) at its ``output``, or (V, B, P) of its parameters by role where its rule reduces them."""


@dataclass(frozen=True, slots=True)
class Use:
    """One parameter in one call."""

    parameter: nn.Parameter
    first: int
    """Entry in C order at which the part that is used starts."""
    layout: Layout


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded operation."""

    binding: Binding
    inputs: torch.Tensor | None
    """The operand that depends on the sample, detached."""
    uses: Mapping[str, Use]
    """By role; parameters that are not tracked are missing."""
    layout: Layout
    output: GradientEdge
    """Where the gradient at the output is read. An edge, not the tensor: an in-place activation behind the operation
    would rewrite the tensor's history, but not the edge."""
    shape: torch.Size
    """Of the output."""
    data_node: Any
    """The node of the autograd graph behind the data, None if it has no history."""

    def aligned(self, deltas: torch.Tensor, num_samples: int) -> torch.Tensor | None:
        """Return (V, ...) gradients at the output as (V, B L, ...); None if they do not have the layout."""
        by_vector = deltas.reshape(len(deltas), *self.shape)
        return batch_major(by_vector, num_samples, self.layout, self.binding.output_axes, axis=1)

    def prepared(self, num_samples: int) -> torch.Tensor | None:
        """Return the batch-major operand that the rule is given; None if there is none, or if it does not fit."""
        inputs = self.inputs
        if inputs is not None and self.layout == "shared":
            inputs = expanded(inputs, num_samples)
        elif inputs is not None:
            inputs = batch_major(inputs, num_samples, self.layout, self.binding.data_axes)
        return inputs if inputs is None or self.binding.prepare is None else self.binding.prepare(inputs)

    def gradients(self, prepared: torch.Tensor | None, deltas: torch.Tensor, num_samples: int) -> Gradients | None:
        """Return what is kept of gradients at the output.

        Args:
            prepared: From :meth:`prepared`.
            deltas: As autograd gives them, of V output vectors.
            num_samples: B.

        Returns:
            The aligned gradients, or, where the rule reduces them, those of the parameters by role; None if the operands
            do not fit the layout.
        """
        aligned = self.aligned(deltas, num_samples)
        if aligned is None or (prepared is None and self.inputs is not None):
            return None
        if not self.binding.reduces:
            return {OUTPUT: aligned}
        by_role = self.binding.rule(aligned[0] if prepared is None else prepared, aligned, num_samples)
        return {role: by_role[role].dense().transpose(0, 1) for role in self.uses}

    def factors(self, gradients: Gradients, num_samples: int) -> Mapping[nn.Parameter, AbstractFactor]:
        """Return one factor per tracked parameter from the gradients of all output vectors."""
        by_role: Mapping[str, AbstractFactor]
        if self.binding.reduces:
            shapes = {role: tensor.shape for role, tensor in self.binding.parameters.items()}
            by_role = {role: DenseFactor(value.transpose(0, 1), shapes[role]) for role, value in gradients.items()}
        else:
            inputs, deltas = self.prepared(num_samples), gradients[OUTPUT]
            assert inputs is not None, "gradients() has found that it fits"
            by_role = self.binding.rule(inputs, deltas, num_samples)
        found: dict[nn.Parameter, AbstractFactor] = {}
        for role, use in self.uses.items():
            factor = _placed(by_role[role], use)
            found[use.parameter] = found[use.parameter].plus(factor) if use.parameter in found else factor
        return found


def _placed(factor: AbstractFactor, use: Use) -> AbstractFactor:
    """Return a factor of the whole parameter from that of the part of it that is used, whatever the part's shape."""
    shape = use.parameter.shape
    num_rows = shape[0] if shape else 1
    num_columns = use.parameter.numel() // max(1, num_rows)
    first_row, rest = divmod(use.first, max(1, num_columns))
    if factor.num_columns == num_columns and not rest:
        if factor.num_rows == num_rows:
            return factor
        if isinstance(factor, RowFactor):
            return RowFactor(factor.ids_BT + first_row, factor.deltas_BVTQ, num_rows)
        if isinstance(factor, OuterFactor) and not factor.transposed:
            return factor.among_rows(first_row, num_rows)
    missing = use.parameter.numel() - factor.numel
    return DenseFactor(functional.pad(factor.dense(), (use.first, missing - use.first)), shape)


@final
class Interceptor(TorchFunctionMode):
    """Records the calls of a forward pass that use tracked parameters.

    Args:
        layouts: Of the tracked parameters.
        num_samples: B.

    Attributes:
        calls: In order.
        misfits: Parameters that were used in a way that does not fit their layout.
    """

    def __init__(self, layouts: Mapping[nn.Parameter, Layout], num_samples: int) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.misfits: set[nn.Parameter] = set()
        self._layouts = layouts
        self._num_samples = num_samples
        self._expansions: set[Any] = set()
        self._uneven: frozenset[Layout] = frozenset()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out a call, and record it if it uses a tracked parameter by a known rule."""
        kwargs = kwargs or {}
        if func is functional.multi_head_attention_forward:
            # Its projections are calls of their own, which are seen only with the mode on.
            with self:
                return _multi_head_attention(*args, **kwargs)
        if _is_transformed():
            return func(*args, **kwargs)
        self._uneven |= _uneven_layouts(func, args, self._num_samples)
        binder = OPERATIONS.get(func) if torch.is_grad_enabled() else None
        binding = None if binder is None else binder(*args, **kwargs)
        if binding is None:
            return func(*args, **kwargs)
        uses: dict[str, Use] = {}
        others = []
        for role, tensor in binding.parameters.items():
            use = self._use(tensor)
            if use is None:
                others.append(tensor)
            else:
                uses[role] = use
        # Before the call, which may be in place.
        behind = _node(binding.data)
        output = func(*args, **kwargs)
        if not uses or not output.requires_grad:
            return output
        layout = self._layout(uses, behind)
        if layout is None or not self._fits(binding, layout, others):
            self.misfits |= {use.parameter for use in uses.values()}
            return output
        return self._record(binding, uses, layout, output, behind)

    def _use(self, tensor: torch.Tensor) -> Use | None:
        """Return which tracked parameter a tensor is, or is a contiguous part of."""
        if isinstance(tensor, nn.Parameter):
            layout = self._layouts.get(tensor)
            return None if layout is None else Use(tensor, 0, layout)
        base = tensor._base
        # A view that was made without gradients has no history, although it claims to require them.
        if not isinstance(base, nn.Parameter) or base not in self._layouts or tensor.grad_fn is None:
            return None
        if not base.is_contiguous() or not tensor.is_contiguous() or tensor.dtype != base.dtype:
            return None
        return Use(base, int(tensor.storage_offset() - base.storage_offset()), self._layouts[base])

    def _layout(self, uses: Mapping[str, Use], behind: Any) -> Layout | None:
        """Return the layout of a call, None if its parameters have different ones."""
        layout, *differing = {use.layout for use in uses.values()}
        if differing:
            return None
        # What all samples share has been expanded by the first operation on the way.
        return "batch-first" if layout == "shared" and self._is_expanded(behind) else layout

    def _is_expanded(self, node: Any) -> bool:
        seen, pending = set(), [node] if self._expansions else []
        while pending:
            node = pending.pop()
            if node in self._expansions:
                return True
            if node is not None and node not in seen:
                seen.add(node)
                pending += [following for following, _ in node.next_functions]
        return False

    def _fits(self, binding: Binding, layout: Layout, others: list[torch.Tensor]) -> bool:
        """Return whether a call can be recorded."""
        if layout not in binding.layouts:
            return False
        # A weight that is computed from parameters hides uses of them behind the call.
        if any(tensor.grad_fn is not None and not self._is_untracked(tensor._base) for tensor in others):
            return False
        if layout not in self._uneven or binding.data is None:
            return True
        # Rows that were selected unevenly may be from any samples, however many they are.
        axes = binding.data.shape[: binding.data.dim() - binding.data_axes]
        return layout != "shared" and len(axes) > 1 and axes[LAYOUTS.index(layout)] == self._num_samples

    def _is_untracked(self, base: torch.Tensor | None) -> bool:
        return isinstance(base, nn.Parameter) and base not in self._layouts

    def _record(
        self, binding: Binding, uses: Mapping[str, Use], layout: Layout, output: torch.Tensor, behind: Any
    ) -> torch.Tensor:
        if layout == "shared":
            output = expanded(output, self._num_samples)
            self._expansions.add(get_gradient_edge(output).node)
        call = Call(
            binding=binding,
            inputs=None if binding.data is None else binding.data.detach(),
            uses=uses,
            layout=layout,
            output=get_gradient_edge(_source(output)),
            shape=output.shape,
            data_node=behind,
        )
        self.calls.append(call)
        return output


def _node(tensor: torch.Tensor | None) -> Any:
    """Return the node of the autograd graph behind a tensor, that of a leaf included."""
    return None if tensor is None or not tensor.requires_grad else get_gradient_edge(tensor).node


def _source(output: torch.Tensor) -> torch.Tensor:
    """Return the tensor behind whose node the gradient is read.

    An in-place activation on a view, such as a Linear layer's output at several positions or that of an InstanceNorm,
    goes around the view's node; its base has the same values in the same order.
    """
    base = output._base
    if base is None or base.grad_fn is None or base.numel() != output.numel() or base.dtype != output.dtype:
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output


def _is_transformed() -> bool:
    """Return whether the call is inside of a transform of torch.func, whose tensors must not be kept."""
    return torch._C._functorch.peek_interpreter_stack() is not None


_SELECTIONS = frozenset(
    {
        torch.Tensor.masked_select,
        torch.Tensor.nonzero,
        torch.argwhere,
        torch.masked_select,
        torch.nonzero,
    }
)


def _uneven_layouts(func: Callable[..., Any], args: tuple[Any, ...], num_samples: int) -> frozenset[Layout]:
    """Return the layouts that selected rows do not have, because more may be of some samples than of others."""
    if func is not torch.Tensor.__getitem__:
        selects = func in _SELECTIONS or (func is torch.where and len(args) == 1)
        return frozenset(LAYOUTS) if selects else frozenset()
    parts = args[1] if isinstance(args[1], tuple) else (args[1],)
    masks = [part for part in parts if isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8)]
    # Behind a whole axis, a mask selects the same of all samples.
    if not masks or (isinstance(parts[0], slice) and parts[0] == slice(None)):
        return frozenset()
    mask = masks[0].bool()
    if bool(mask.all()):
        return frozenset()
    uneven = set(LAYOUTS)
    if parts[0] is masks[0] and mask.dim():
        numbers = mask.reshape(len(mask), -1).sum(dim=1)
        if len(mask) == num_samples and bool((numbers == numbers[0]).all()):
            uneven.discard("batch-first")
        whole = mask.numel() // len(mask)
        if mask.dim() > 1 and mask.shape[1] == num_samples and bool(((numbers == 0) | (numbers == whole)).all()):
            uneven.discard("batch-second")
    return frozenset(uneven)


def _visible_body(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of PyTorch whose body runs under an active function mode instead of being handed to it."""
    assert isinstance(function, types.FunctionType)
    scope = {**function.__globals__, "has_torch_function": lambda _: False}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body


_multi_head_attention = _visible_body(functional.multi_head_attention_forward)
