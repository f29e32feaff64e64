"""Parameters that are added to or multiplied with activations, or expanded over the batch.

Class tokens, learned positions, layer scales, and the scales of home-made normalisations.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.operations.base import Binding, arguments, per_sample
from ntkpipe.workers.jacobians.routes import Layout


def addition(*args: Any, **kwargs: Any) -> Binding | None:
    """Both orders of x + p, also in place."""
    return None if kwargs.get("alpha", 1) != 1 else _with_data(args, kwargs, product=False)


def multiplication(*args: Any, **kwargs: Any) -> Binding | None:
    """Both orders of x * p."""
    return _with_data(args, kwargs, product=True)


def expansion(parameter: torch.Tensor, *sizes: Any, **kwargs: Any) -> Binding | None:
    """p.expand(B, ...)."""
    given = _numbers(sizes)
    if kwargs or len(given) < parameter.dim() or not _is_parameter(parameter):
        return None
    shape = _aligned(parameter, len(given))
    return _bind(None, parameter, [own if size == -1 else size for own, size in zip(shape, given, strict=True)])


def expansion_as(parameter: torch.Tensor, other: torch.Tensor) -> Binding | None:
    """p.expand_as(x)."""
    return _bind(None, parameter, other.shape) if _is_parameter(parameter) else None


def repetition(parameter: torch.Tensor, *repeats: Any, **kwargs: Any) -> Binding | None:
    """p.repeat(B, 1, ...), which is an expansion where only axes of size 1 are repeated."""
    given = _numbers(repeats)
    if kwargs or len(given) < parameter.dim() or not _is_parameter(parameter):
        return None
    shape = _aligned(parameter, len(given))
    if any(own != 1 and times != 1 for own, times in zip(shape, given, strict=True)):
        return None
    return _bind(None, parameter, [own * times for own, times in zip(shape, given, strict=True)])


def prelu(*args: Any, **kwargs: Any) -> Binding | None:
    """max(x, 0) + p min(x, 0), with one number or one for each channel."""
    given = arguments(("input", "weight"), args, kwargs)
    data, weight = given["input"], given["weight"]
    num_features = data.dim() - 1
    if num_features < 1:
        return None
    rule = partial(_factors, aligned=(weight.numel(),) + (1,) * (num_features - 1), product=True)
    return Binding(
        data, {"weight": weight}, rule, num_features, num_features, reduces=True, prepare=partial(torch.clamp, max=0)
    )


def _with_data(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, product: bool) -> Binding | None:
    given = arguments(("input", "other"), args, kwargs)
    one, other = given["input"], given["other"]
    data, parameter = (one, other) if _is_parameter(other) else (other, one)
    if not isinstance(data, torch.Tensor) or not _is_parameter(parameter) or _is_parameter(data):
        return None
    return _bind(data, parameter, data.shape, product=product)


def _bind(
    data: torch.Tensor | None, parameter: torch.Tensor, sizes: Sequence[int], *, product: bool = False
) -> Binding | None:
    """Return what is recorded of a parameter that is broadcast over the batch, if it is."""
    num_axes = len(sizes)
    if not num_axes or num_axes < parameter.dim():
        return None
    shape = _aligned(parameter, num_axes)
    # Two axes are (B L, ...) or (L B, ...); more are (B, ...) or (L, B, ...).
    second_batch_axis = 1 if num_axes > 2 else 0
    layouts: list[Layout] = ["batch-first"] if shape[0] == 1 else []
    if num_axes > 1 and shape[second_batch_axis] == 1:
        layouts.append("batch-second")
    if not layouts:
        return None
    # With samples first, at the most one of the two leading axes is left for positions.
    position = (shape[0] * shape[1],) if num_axes > 2 else ()
    num_features = num_axes - 2 if num_axes > 2 else num_axes - 1
    rule = partial(_factors, aligned=position + shape[num_axes - num_features :], product=product)
    return Binding(data, {"weight": parameter}, rule, num_features, num_features, tuple(layouts), reduces=True)


def _factors(
    inputs: torch.Tensor, deltas: torch.Tensor, num_samples: int, *, aligned: tuple[int, ...], product: bool
) -> Mapping[str, AbstractFactor]:
    """Sum over everything that the parameter was broadcast along."""
    gradients = deltas * inputs if product else deltas
    broadcast = [axis for axis, size in enumerate(aligned) if size == 1]
    summed = per_sample(gradients, num_samples).sum(dim=[2, *(3 + axis for axis in broadcast)])
    return {"weight": DenseFactor(summed.reshape(*summed.shape[:2], -1).transpose(0, 1), aligned)}


def _aligned(parameter: torch.Tensor, num_axes: int) -> tuple[int, ...]:
    """Return the shape of a parameter with leading axes of size 1."""
    return (1,) * (num_axes - parameter.dim()) + tuple(parameter.shape)


def _numbers(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """Return sizes that are given one by one or as a sequence."""
    return tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes


def _is_parameter(tensor: Any) -> bool:
    """Return whether a tensor is a parameter or a view of one."""
    return isinstance(tensor, nn.Parameter) or isinstance(getattr(tensor, "_base", None), nn.Parameter)


ELEMENTWISE: dict[Callable[..., Any], Callable[..., Binding | None]] = {
    torch.Tensor.add: addition,
    torch.Tensor.add_: addition,
    torch.Tensor.mul: multiplication,
    torch.add: addition,
    torch.mul: multiplication,
    torch.Tensor.expand: expansion,
    torch.Tensor.expand_as: expansion_as,
    torch.broadcast_to: expansion,
    torch.Tensor.broadcast_to: expansion,
    torch.Tensor.repeat: repetition,
    functional.prelu: prelu,
}
