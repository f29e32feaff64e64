"""The slow, obvious definition of every empirical kernel: a dense float64 Jacobian per parameter.

Memory is O(N C P). Nothing but tests and diagnostics should use it.
"""

import copy

import torch
from torch import nn


def dense_jacobian(model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return {parameter name: (N, C, P)} in float64: plain autograd, one sample and one output at a time."""
    exact = copy.deepcopy(model).to(dtype=torch.float64, device="cpu")
    samples = inputs.to(device="cpu", dtype=torch.float64) if inputs.is_floating_point() else inputs.cpu()
    parameters = {name: value for name, value in exact.named_parameters() if value.requires_grad}
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    for sample in samples:
        outputs = exact(sample.unsqueeze(0)).reshape(-1)
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
        for output in outputs:
            gradients = torch.autograd.grad(
                output, list(parameters.values()), retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                columns[name].append(gradient.flatten())
        for name, column in columns.items():
            rows[name].append(torch.stack(column))
    return {name: torch.stack(row) for name, row in rows.items()}


def reference_components(
    kind: str, rows: dict[str, torch.Tensor], columns: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return {parameter name: (N, M)} components of ``trntk0``, ``trntk`` or ``pntk`` from dense Jacobians."""
    if kind == "pntk":
        rows = {name: value.sum(dim=1, keepdim=True) for name, value in rows.items()}
        columns = {name: value.sum(dim=1, keepdim=True) for name, value in columns.items()}
    components = {name: torch.einsum("ncp,mcp->nm", rows[name], columns[name]) for name in rows}
    if kind == "trntk":
        row_norms, column_norms = (
            torch.stack([value.square().sum(dim=(1, 2)) for value in side.values()]).sum(0).sqrt()
            for side in (rows, columns)
        )
        components = {name: value / torch.outer(row_norms, column_norms) for name, value in components.items()}
    return components
