"""Matrix products with a weight."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.factors.dense import DenseFactor
from ntkpipe.workers.jacobians.factors.outer import OuterFactor
from ntkpipe.workers.jacobians.operations.base import Binding, arguments


def linear(*args: Any, **kwargs: Any) -> Binding | None:
    """The product x W^T + b, with any leading axes."""
    given = arguments(("input", "weight", "bias"), args, kwargs)
    weight, turned = _turned(given["weight"])
    parameters = {"weight": weight}
    if given.get("bias") is not None:
        parameters["bias"] = given["bias"]
    return Binding(given["input"], parameters, partial(_factors, transposed=turned))


def matmul(*args: Any, **kwargs: Any) -> Binding | None:
    """The product x W with a matrix or a vector W."""
    given = arguments(("input", "other"), args, {"other": kwargs["mat2"]} if "mat2" in kwargs else kwargs)
    data, weight = given["input"], given["other"]
    if weight.dim() > 2 or data.dim() < 2:
        return None
    if weight.dim() == 1:
        return Binding(data, {"weight": weight}, _vector_factors, output_axes=0)
    weight, turned = _turned(weight)
    return Binding(data, {"weight": weight}, partial(_factors, transposed=not turned))


def addmm(*args: Any, **kwargs: Any) -> Binding | None:
    """The product b + x W, the form of Hugging Face's Conv1D."""
    given = arguments(("input", "mat1", "mat2"), args, kwargs)
    if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1 or given["input"].dim() != 1:
        return None
    weight, turned = _turned(given["mat2"])
    parameters = {"weight": weight, "bias": given["input"]}
    return Binding(given["mat1"], parameters, partial(_factors, transposed=not turned))


def _turned(weight: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """Return the parameter whose transpose a weight is, and whether it is one; the weight itself otherwise."""
    base = weight._base
    if isinstance(base, nn.Parameter) and base.dim() == 2 and weight.shape == base.shape[::-1]:
        return (base, True) if weight.stride() == base.stride()[::-1] else (weight, False)
    return weight, False


def _factors(
    inputs: torch.Tensor, deltas: torch.Tensor, num_samples: int, *, transposed: bool
) -> Mapping[str, AbstractFactor]:
    deltas_BVTO = deltas.reshape(len(deltas), num_samples, -1, deltas.shape[-1]).transpose(0, 1)
    inputs_BTI = inputs.reshape(num_samples, -1, inputs.shape[-1])
    weight = OuterFactor(inputs_BTI, deltas_BVTO, transposed=transposed)
    if weight.num_positions == 1:
        return {"weight": weight, "bias": DenseFactor(deltas_BVTO[:, :, 0], deltas.shape[-1:], deltas_of=weight)}
    return {"weight": weight, "bias": DenseFactor(deltas_BVTO.sum(dim=2), deltas.shape[-1:])}


def _vector_factors(inputs: torch.Tensor, deltas: torch.Tensor, num_samples: int) -> Mapping[str, AbstractFactor]:
    deltas_VBT = deltas.reshape(len(deltas), num_samples, -1)
    inputs_BTI = inputs.reshape(num_samples, -1, inputs.shape[-1])
    return {"weight": DenseFactor(torch.einsum("vbt,bti->bvi", deltas_VBT, inputs_BTI), inputs.shape[-1:])}
