"""Convolutions of one to three axes, with stride, padding, dilation and groups, and their transposes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.operations.base import Binding, arguments

Sides = tuple[tuple[int, int], ...]
"""Padding before and after each axis."""


def convolution(num_axes: int) -> Callable[..., Binding | None]:
    """Return the binder of convolutions with a number of axes."""

    def bind(*args: Any, **kwargs: Any) -> Binding | None:
        given = arguments(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, kwargs)
        weight = given["weight"]
        kernel = tuple(weight.shape[2:])
        stride, dilation = (_per_axis(given.get(name, 1), num_axes) for name in ("stride", "dilation"))
        sides = _sides(given.get("padding", 0), kernel, dilation)
        groups = given.get("groups", 1)
        unfold = partial(patches, kernel=kernel, stride=stride, dilation=dilation, sides=sides)
        rule = partial(_factors, unfold=unfold, groups=groups)
        return _bind(given, rule, num_axes)

    return bind


def transposed_convolution(num_axes: int) -> Callable[..., Binding | None]:
    """Return the binder of transposed convolutions with a number of axes."""

    def bind(*args: Any, **kwargs: Any) -> Binding | None:
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        given = arguments(names, args, kwargs)
        weight = given["weight"]
        kernel = tuple(weight.shape[2:])
        stride, padding, extra, dilation = (
            _per_axis(given.get(name, default), num_axes)
            for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
        )
        # With what is cut off before and after the output, it is as long as the input positions reach; where
        # output_padding makes it longer than that, the second number is negative and cuts it.
        sides = tuple((before, before - more) for before, more in zip(padding, extra, strict=True))
        unfold = partial(patches, kernel=kernel, stride=stride, dilation=dilation, sides=sides)
        rule = partial(_transposed_factors, unfold=unfold, groups=given.get("groups", 1))
        return _bind(given, rule, num_axes)

    return bind


def patches(
    inputs: torch.Tensor, *, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], sides: Sides
) -> torch.Tensor:
    """Return what each output position sees of zero-padded inputs, (B, T, I), channels before kernel positions."""
    num_axes = len(kernel)
    if any(kernel_size != 1 for kernel_size in kernel) or any(side != (0, 0) for side in sides):
        inputs = functional.pad(inputs, [size for side in reversed(sides) for size in side])
    if num_axes == 2:
        unfolded = functional.unfold(inputs, kernel, dilation=dilation, stride=stride)
        return unfolded.transpose(1, 2)
    for axis in range(num_axes):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        # Each step moves the kernel's positions to a new last axis.
        inputs = inputs.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
    order = (0, *range(2, 2 + num_axes), 1, *range(2 + num_axes, 2 + 2 * num_axes))
    return inputs.permute(order).flatten(1 + num_axes).flatten(1, num_axes)


def _bind(given: dict[str, Any], rule: Any, num_axes: int) -> Binding | None:
    if given["input"].dim() != num_axes + 2:
        return None  # without a batch
    parameters = {"weight": given["weight"]}
    if given.get("bias") is not None:
        parameters["bias"] = given["bias"]
    return Binding(given["input"], parameters, rule, data_axes=num_axes + 1, output_axes=num_axes + 1)


def _per_axis(value: int | tuple[int, ...] | list[int], num_axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * num_axes if len(values) == 1 else values


def _sides(padding: str | int | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Sides:
    if not isinstance(padding, str):
        return tuple((side, side) for side in _per_axis(padding, len(kernel)))
    totals = (d * (size - 1) if padding == "same" else 0 for size, d in zip(kernel, dilation, strict=True))
    # PyTorch pads the far side by one more where the total is odd.
    return tuple((total // 2, total - total // 2) for total in totals)


def _factors(
    inputs: torch.Tensor,
    deltas: torch.Tensor,
    num_samples: int,
    *,
    unfold: Callable[[torch.Tensor], torch.Tensor],
    groups: int,
) -> Mapping[str, AbstractFactor]:
    deltas_BVTO = _positions(deltas, num_samples)
    bias = DenseFactor(deltas_BVTO.sum(dim=2), deltas_BVTO.shape[3:])

    def unfold_samples(part: torch.Tensor) -> torch.Tensor:
        by_sample: torch.Tensor = unfold(part.flatten(0, 1)).unflatten(0, (len(part), -1))
        return by_sample.flatten(1, 2)

    by_sample = inputs.unflatten(0, (num_samples, -1))
    if groups == 1:
        return {"weight": OuterFactor(by_sample, deltas_BVTO, unfold=unfold_samples), "bias": bias}
    # Weights of grouped convolutions are small: each output channel sees only the inputs of its group.
    grouped_BTGI = unfold_samples(by_sample).unflatten(2, (groups, -1))
    grouped_BVTGO = deltas_BVTO.unflatten(3, (groups, -1))
    weight_BVGOI = torch.einsum("bvtgo,btgi->bvgoi", grouped_BVTGO, grouped_BTGI)
    shape = (deltas_BVTO.shape[3], weight_BVGOI.shape[4])
    return {"weight": DenseFactor(weight_BVGOI.flatten(2), shape), "bias": bias}


def _transposed_factors(
    inputs: torch.Tensor,
    deltas: torch.Tensor,
    num_samples: int,
    *,
    unfold: Callable[[torch.Tensor], torch.Tensor],
    groups: int,
) -> Mapping[str, AbstractFactor]:
    """Swap the roles of input and output: every input position sees a patch of the output."""
    num_vectors = len(deltas)
    bias_BVO = deltas.unflatten(1, (num_samples, -1)).flatten(4).sum(dim=(2, 4)).transpose(0, 1)
    bias = DenseFactor(bias_BVO, bias_BVO.shape[2:])
    patches_VBTO = unfold(deltas.flatten(0, 1)).unflatten(0, (num_vectors, num_samples, -1)).flatten(2, 3)
    patches_BVTO = patches_VBTO.transpose(0, 1)
    inputs_BTI = inputs.unflatten(0, (num_samples, -1)).flatten(3).transpose(2, 3).flatten(1, 2)
    if groups == 1:
        return {"weight": OuterFactor(inputs_BTI, patches_BVTO, transposed=True), "bias": bias}
    grouped_BTGI = inputs_BTI.unflatten(2, (groups, -1))
    grouped_BVTGO = patches_BVTO.unflatten(3, (groups, -1))
    weight_BVGIO = torch.einsum("btgi,bvtgo->bvgio", grouped_BTGI, grouped_BVTGO)
    shape = (inputs_BTI.shape[2], weight_BVGIO.shape[4])
    return {"weight": DenseFactor(weight_BVGIO.flatten(2), shape), "bias": bias}


def _positions(deltas: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Return (B, V, T, O) from (V, B L, O, ...)."""
    by_sample: torch.Tensor = deltas.unflatten(1, (num_samples, -1)).flatten(4)
    return by_sample.permute(1, 0, 2, 4, 3).flatten(2, 3)
