"""The textbook way to an exact kernel: materialise all per-sample Jacobians, then contract them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

Jacobian = dict[str, torch.Tensor]
"""Parameter name to its (N, C, ...) gradients."""

SLICE_NUMBERS = 1 << 26
"""Entries of the slice of a Jacobian that is contracted to see what all of it would cost; 256 MiB."""


def jacobian_by_vmap(model: nn.Module, inputs: torch.Tensor, chunk_size: int = 8) -> Jacobian:
    """Return per-sample Jacobians by ``vmap(jacrev)``, some samples at a time."""
    trainable, other = split_state(model)

    def outputs_of(parameters: dict[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        outputs_1C: torch.Tensor = functional_call(model, (parameters, other), (sample[None],))
        return outputs_1C[0]

    found: Jacobian = vmap(partial(jacrev(outputs_of), trainable), chunk_size=chunk_size)(inputs)
    return found


def jacobian_by_loop(model: nn.Module, inputs: torch.Tensor) -> Jacobian:
    """Return per-sample Jacobians by one plain backward pass per sample and output."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def gradients(sample: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
        outputs_C = model(sample[None])[0]
        return [torch.autograd.grad(output, list(parameters.values()), retain_graph=True) for output in outputs_C]

    rows = [gradients(sample) for sample in inputs]
    return {
        name: torch.stack([torch.stack([row[index] for row in rows_C]) for rows_C in rows])
        for index, name in enumerate(parameters)
    }


METHODS: dict[str, Callable[[nn.Module, torch.Tensor], Jacobian]] = {
    "Jacobian contraction, torch.func vmap(jacrev)": jacobian_by_vmap,
    "Jacobian contraction, loop over samples and outputs": jacobian_by_loop,
}


def contract(jacobian: Jacobian, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return the (N, N) traced kernel: the sum over parameters and outputs of products of gradients.

    Products of single precision over millions of columns lose three digits or more, so pass ``torch.float64`` where
    the result matters and not the time.
    """
    flat = [gradient.flatten(1).to(dtype or gradient.dtype) for gradient in jacobian.values()]
    return torch.stack([torch.einsum("np,mp->nm", rows_NP, rows_NP) for rows_NP in flat]).sum(0)


def jacobian_slice(num_samples: int, num_columns: int, device: torch.device) -> Jacobian:
    """Return numbers of the shape of N rows and some of the C P columns of a Jacobian."""
    columns = min(num_columns, max(1, SLICE_NUMBERS // num_samples))
    generator = torch.Generator(device=device).manual_seed(0)
    return {"slice": torch.randn(num_samples, columns, generator=generator, device=device)}


def split_state(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return trainable parameters, and everything else a functional call needs."""
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return trainable, frozen | dict(model.named_buffers())
