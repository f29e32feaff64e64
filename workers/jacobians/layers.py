"""How each kind of layer turns its input and the gradient at its output into gradients of its parameters.

A rule takes the layer's input (B, ...) and the gradients at its output (V, B, ...) and returns one factor per role
(``weight``, ``bias``). Linear layers and convolutions are outer products over positions; normalisations scale their
normalised input, so that their gradients have the size of the parameter anyway.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from ntkpipe.workers.jacobians.factors import AbstractFactor, DenseFactor, OuterFactor

Rule = Callable[[nn.Module, torch.Tensor, torch.Tensor], dict[str, AbstractFactor]]
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def has_rule(module: nn.Module) -> bool:
    """Return whether the gradients of a module's parameters can be captured."""
    return type(module) in _RULES and getattr(module, "padding_mode", "zeros") == "zeros"


def layer_factors(module: nn.Module, inputs: torch.Tensor, deltas: torch.Tensor) -> dict[str, AbstractFactor]:
    """Return the factors of a module's parameters by role, for one call of the module.

    Args:
        module: One that has a rule.
        inputs: What it was given, (B, ...).
        deltas: Gradients at its output, (V, B, ...).
    """
    return _RULES[type(module)](module, inputs, deltas)


def _linear(module: nn.Module, inputs: torch.Tensor, deltas: torch.Tensor) -> dict[str, AbstractFactor]:
    num_vectors, num_samples, *_, num_out = deltas.shape
    deltas_VBTO = deltas.reshape(num_vectors, num_samples, -1, num_out)
    inputs_BTI = inputs.reshape(num_samples, -1, inputs.shape[-1])
    return {"weight": OuterFactor(inputs_BTI, deltas_VBTO), "bias": DenseFactor(deltas_VBTO.sum(dim=2))}


def _convolution(module: nn.Module, inputs: torch.Tensor, deltas: torch.Tensor) -> dict[str, AbstractFactor]:
    layer = cast(Convolution, module)
    deltas_VBTO = deltas.flatten(3).transpose(2, 3)
    patches_BTI = _patches(layer, inputs)
    bias = DenseFactor(deltas_VBTO.sum(dim=2))
    if layer.groups == 1:
        return {"weight": OuterFactor(patches_BTI, deltas_VBTO), "bias": bias}
    # Weights of grouped convolutions are small: each output channel sees only the inputs of its group.
    grouped_BTGI = patches_BTI.unflatten(2, (layer.groups, -1))
    grouped_VBTGO = deltas_VBTO.unflatten(3, (layer.groups, -1))
    weight_VBGOI = torch.einsum("vbtgo,btgi->vbgoi", grouped_VBTGO, grouped_BTGI)
    return {"weight": DenseFactor(weight_VBGOI.flatten(2)), "bias": bias}


def _patches(layer: Convolution, inputs: torch.Tensor) -> torch.Tensor:
    """Return what each output position sees of zero-padded inputs, (B, T, I), channels before kernel positions."""
    sides: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        sides += _padding(layer, axis)
    patches = functional.pad(inputs, sides)
    num_axes = len(layer.kernel_size)
    for axis in range(num_axes):
        span = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        # Each step moves the kernel's positions to a new last axis.
        patches = patches.unfold(2 + axis, span, layer.stride[axis])[..., :: layer.dilation[axis]]
    order = (0, *range(2, 2 + num_axes), 1, *range(2 + num_axes, 2 + 2 * num_axes))
    return patches.permute(order).flatten(1 + num_axes).flatten(1, num_axes)


def _padding(layer: Convolution, axis: int) -> tuple[int, int]:
    if not isinstance(layer.padding, str):
        return layer.padding[axis], layer.padding[axis]
    total = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if layer.padding == "same" else 0
    # PyTorch pads the far side by one more where the total is odd.
    return total // 2, total - total // 2


def _layer_norm(module: nn.Module, inputs: torch.Tensor, deltas: torch.Tensor) -> dict[str, AbstractFactor]:
    layer = cast(nn.LayerNorm, module)
    normalised = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _scale_and_shift(normalised, deltas, len(layer.normalized_shape))


def _rms_norm(module: nn.Module, inputs: torch.Tensor, deltas: torch.Tensor) -> dict[str, AbstractFactor]:
    layer = cast(nn.RMSNorm, module)
    normalised = functional.rms_norm(inputs, list(layer.normalized_shape), eps=layer.eps)
    return _scale_and_shift(normalised, deltas, len(layer.normalized_shape))


def _group_norm(module: nn.Module, inputs: torch.Tensor, deltas: torch.Tensor) -> dict[str, AbstractFactor]:
    layer = cast(nn.GroupNorm, module)
    normalised = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return _scale_and_shift(normalised.movedim(1, -1), deltas.movedim(2, -1), 1)


def _batch_norm(module: nn.Module, inputs: torch.Tensor, deltas: torch.Tensor) -> dict[str, AbstractFactor]:
    layer = cast(nn.BatchNorm2d, module)
    normalised = functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
    return _scale_and_shift(normalised.movedim(1, -1), deltas.movedim(2, -1), 1)


def _scale_and_shift(normalised: torch.Tensor, deltas: torch.Tensor, num_axes: int) -> dict[str, AbstractFactor]:
    """Return factors of a scale and a shift over the last axes: sums over all positions before them."""
    num_vectors, num_samples = deltas.shape[:2]
    shape = deltas.shape[deltas.dim() - num_axes :]
    deltas_VBTP = deltas.reshape(num_vectors, num_samples, -1, shape.numel())
    normalised_BTP = normalised.reshape(num_samples, -1, shape.numel())
    return {
        "weight": DenseFactor((deltas_VBTP * normalised_BTP).sum(dim=2)),
        "bias": DenseFactor(deltas_VBTP.sum(dim=2)),
    }


_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}
"""By exact type: a subclass may compute something else."""
