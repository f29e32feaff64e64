"""Normalisations: a scale and a shift behind statistics of the sample, or fixed ones.

Their gradients have the size of the parameter, so they are materialised at once: sums over positions of the normalised
input times the gradient at the output, and of the latter alone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.operations.base import Binding, Rule, arguments, per_sample

Normalise = Callable[[torch.Tensor], torch.Tensor]


def layer_norm(*args: Any, **kwargs: Any) -> Binding | None:
    """Over the last axes of every position."""
    given = arguments(("input", "normalized_shape", "weight", "bias", "eps"), args, kwargs)
    shape = tuple(given["normalized_shape"])
    normalise = partial(functional.layer_norm, normalized_shape=list(shape), eps=given.get("eps", 1e-5))
    return _last_axes(given, normalise, len(shape))


def rms_norm(*args: Any, **kwargs: Any) -> Binding | None:
    """Over the last axes of every position, without a shift."""
    given = arguments(("input", "normalized_shape", "weight", "eps"), args, kwargs)
    shape = tuple(given["normalized_shape"])
    normalise = partial(functional.rms_norm, normalized_shape=list(shape), eps=given.get("eps"))
    return _last_axes(given, normalise, len(shape))


def group_norm(*args: Any, **kwargs: Any) -> Binding | None:
    """Over groups of channels."""
    given = arguments(("input", "num_groups", "weight", "bias", "eps"), args, kwargs)
    return _channels(given, partial(functional.group_norm, num_groups=given["num_groups"], eps=given.get("eps", 1e-5)))


def instance_norm(*args: Any, **kwargs: Any) -> Binding | None:
    """Over the positions of every channel, or with running statistics."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    given = arguments(names, args, kwargs)
    from_input = given.get("use_input_stats", True)
    normalise = partial(
        functional.instance_norm,
        running_mean=None if from_input else given.get("running_mean"),
        running_var=None if from_input else given.get("running_var"),
        use_input_stats=from_input,
        eps=given.get("eps", 1e-5),
    )
    return _channels(given, normalise)


def batch_norm(*args: Any, **kwargs: Any) -> Binding | None:
    """With running statistics; those of the batch would mix samples."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = arguments(names, args, kwargs)
    if given.get("training", False):
        return None
    normalise = partial(
        functional.batch_norm,
        running_mean=given["running_mean"],
        running_var=given["running_var"],
        eps=given.get("eps", 1e-5),
    )
    return _channels(given, normalise)


def _parameters(given: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {role: given[role] for role in ("weight", "bias") if given.get(role) is not None}


def _last_axes(given: dict[str, Any], normalise: Normalise, num_axes: int) -> Binding:
    return _bind(given, normalise, num_axes, partial(_over_positions, num_axes=num_axes))


def _channels(given: dict[str, Any], normalise: Normalise) -> Binding:
    return _bind(given, normalise, given["input"].dim() - 1, _over_channels)


def _bind(given: dict[str, Any], normalise: Normalise, num_axes: int, rule: Rule) -> Binding:
    return Binding(
        given["input"],
        _parameters(given),
        rule,
        data_axes=num_axes,
        output_axes=num_axes,
        reduces=True,
        prepare=normalise,
    )


def _over_positions(
    normalised: torch.Tensor, deltas: torch.Tensor, num_samples: int, *, num_axes: int
) -> Mapping[str, AbstractFactor]:
    """Return factors of a scale and a shift over the last ``num_axes`` axes."""
    shape = deltas.shape[deltas.dim() - num_axes :]

    def summed(values: torch.Tensor) -> DenseFactor:
        by_sample_VBTP = per_sample(values, num_samples).reshape(len(values), num_samples, -1, shape.numel())
        return DenseFactor(by_sample_VBTP.sum(dim=2).transpose(0, 1), shape)

    return {"weight": summed(deltas * normalised), "bias": summed(deltas)}


def _over_channels(normalised: torch.Tensor, deltas: torch.Tensor, num_samples: int) -> Mapping[str, AbstractFactor]:
    """Return factors of a scale and a shift over the channels, the axis behind the batch."""
    shape = deltas.shape[2:3]

    def summed(values: torch.Tensor) -> DenseFactor:
        by_channel = values.flatten(3).sum(dim=3) if values.dim() > 3 else values
        return DenseFactor(per_sample(by_channel, num_samples).sum(dim=2).transpose(0, 1), shape)

    return {"weight": summed(deltas * normalised), "bias": summed(deltas)}
