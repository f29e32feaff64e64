"""Per-sample gradients of any parameter: torch.func where the model allows it, one sample at a time where it does not.

Both compute the (V, B, P) gradients of a few parameters only, from batches of one sample, so that they are also the
yardstick that the captured route is held against.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

from ntkpipe.workers.jacobians.capture import check_outputs

CHUNK_BYTES = 128 * 2**20
"""Samples are vectorised in chunks whose gradients take about this much memory."""


def vectorised_gradients(
    model: nn.Module, names: Sequence[str], inputs: torch.Tensor, cotangents_VBC: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return (V, B, P) gradients by vmap over samples and output vectors.

    Raises:
        RuntimeError: An operation of the model has no batching rule.
    """
    parameters = _selected(model, names)

    def gradients(sample: torch.Tensor, cotangents_VC: torch.Tensor) -> dict[str, torch.Tensor]:
        def outputs(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return check_outputs(functional_call(model, values, (sample.unsqueeze(0),)), 1).squeeze(0)

        pull_back = vjp(outputs, parameters)[1]
        return {
            name: gradient.reshape(len(cotangents_VC), -1)
            for name, gradient in vmap(pull_back)(cotangents_VC)[0].items()
        }

    per_sample = len(cotangents_VBC) * sum(value.numel() * value.element_size() for value in parameters.values())
    chunk = max(1, CHUNK_BYTES // max(1, per_sample))
    # A parameter without influence has constant gradients, which vmap places right along the first axis only.
    stacked_BVP = vmap(gradients, in_dims=(0, 1), chunk_size=chunk)(inputs, cotangents_VBC)
    return {name: gradient.detach().transpose(0, 1) for name, gradient in stacked_BVP.items()}


def looped_gradients(
    model: nn.Module, names: Sequence[str], inputs: torch.Tensor, cotangents_VBC: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return (V, B, P) gradients by one forward pass per sample and one backward pass per output vector."""
    parameters = _selected(model, names)
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for position in range(len(inputs)):
        with torch.enable_grad():
            outputs = check_outputs(model(inputs[position : position + 1]), 1)
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for cotangent in cotangents_VBC[:, position]:
            gradients = torch.autograd.grad(
                outputs, list(parameters.values()), cotangent.unsqueeze(0), retain_graph=True, allow_unused=True
            )
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
                rows[name].append(torch.zeros_like(value).flatten() if gradient is None else gradient.flatten())
        for name, row in rows.items():
            columns[name].append(torch.stack(row))
    return {name: torch.stack(column, dim=1) for name, column in columns.items()}


def _selected(model: nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    parameters: Mapping[str, torch.Tensor] = dict(model.named_parameters())
    return {name: parameters[name] for name in names}
