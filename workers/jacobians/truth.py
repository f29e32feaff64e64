"""Is the backward pass the derivative of the forward pass?

A straight-through estimator, a detached branch or a wrong custom backward gives gradients that no comparison between
routes can find fault with. Here the derivative along one random direction of the parameters is compared with a central
finite difference, in double precision, on two samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from ntkpipe.configs.errors import CoverageError

TOLERANCE = 1e-3
"""Largest relative error of a derivative in double precision; a correct one is off by about 1e-8."""

SINGLE_TOLERANCE = 5e-2
"""For models that cannot be computed in double precision."""

NUM_SAMPLES = 2

ROUNDING = 32
"""By how many units in the last place an output may be off: what a difference of two outputs cannot tell."""


@dataclass(frozen=True, slots=True)
class GradientCheck:
    """What the comparison found."""

    error: float
    """Relative to the larger of both derivatives, or of the contributions that they are the sum of."""
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the backward pass is the derivative of the forward pass."""
        return self.error <= self.tolerance


def check_gradient(model: nn.Module, names: Sequence[str], inputs: torch.Tensor) -> GradientCheck:
    """Compare the derivative along a random direction with a finite difference.

    The comparison is made close to the model's parameters, not at them: all are moved by a thousandth, because models
    often sit exactly on a kink (biases of zero behind padding), where the convention of PyTorch is one of many.

    Args:
        model: The model.
        names: Of the differentiated parameters.
        inputs: Samples; the first two are used.
    """
    try:
        return _compare(
            model, names, inputs[:NUM_SAMPLES], torch.float64, steps=(1e-6, 1e-7, 1e-8), tolerance=TOLERANCE
        )
    except (RuntimeError, TypeError):
        # Something in the model insists on its own precision.
        own = dict(model.named_parameters())[names[0]].dtype
        return _compare(model, names, inputs[:NUM_SAMPLES], own, steps=(1e-2, 1e-3), tolerance=SINGLE_TOLERANCE)


def require_passed(check: GradientCheck) -> None:
    """Refuse a model whose backward pass is not the derivative of its forward pass.

    Raises:
        CoverageError: Says by how much they differ.
    """
    if not check.passed:
        raise CoverageError(
            f"the backward pass is not the derivative of the forward pass: along a random direction they differ by "
            f"{100 * check.error:.2g} % (allowed: {100 * check.tolerance:.2g} %). Look for straight-through estimators, detached "
            "branches or a custom backward. To compute with such pseudo-gradients all the same, set "
            "model.pseudo_gradient=allow, or pass pseudo_gradient='allow'."
        )


def _compare(
    model: nn.Module,
    names: Sequence[str],
    inputs: torch.Tensor,
    dtype: torch.dtype,
    *,
    steps: tuple[float, ...],
    tolerance: float,
) -> GradientCheck:
    generator = torch.Generator().manual_seed(0)
    state = {
        name: value.detach().to(dtype) if value.is_floating_point() else value
        for name, value in (*model.named_parameters(), *model.named_buffers())
    }
    samples = inputs.to(dtype) if inputs.is_floating_point() else inputs
    scales = {name: _scale(state[name]) for name in names}

    def noise(name: str) -> torch.Tensor:
        drawn = torch.randn(state[name].shape, generator=generator, dtype=torch.float64)
        return drawn.to(state[name]) * scales[name]

    point = {name: state[name] + 1e-3 * noise(name) for name in names}
    direction = {name: noise(name) for name in names}
    for name, row in _padding_rows(model).items():
        if name in direction:
            direction[name][row] = 0.0  # by definition without gradient, whatever the outputs do with it
    weights: torch.Tensor | None = None
    sizes_B = torch.zeros(len(samples), dtype=torch.float64)

    def value(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        nonlocal weights, sizes_B
        outputs: torch.Tensor = functional_call(model, {**state, **parameters}, (samples,)).reshape(len(samples), -1)
        if weights is None:
            weights = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
            sizes_B = (outputs * weights).detach().abs().sum(dim=1).double()
        return (outputs * weights).sum(dim=1)

    with torch.enable_grad():
        leaves = {name: tensor.requires_grad_() for name, tensor in point.items()}
        values_B = value(leaves)
        gradients = [
            torch.autograd.grad(one, list(leaves.values()), retain_graph=True, allow_unused=True) for one in values_B
        ]
    # A ReLU that is crossed on the way spoils a difference; of a smaller step there is less to cross.
    for step in steps:
        with torch.no_grad():
            ahead, behind = (
                value({name: point[name] + sign * step * direction[name] for name in names}) for sign in (1, -1)
            )
        differences_B = (ahead - behind).double() / (2 * step)
        # Close to a stationary point a difference is mostly the rounding of outputs.
        noises_B = ROUNDING * torch.finfo(dtype).eps * sizes_B / step
        worst = max(
            _relative_error(dict(zip(names, found, strict=True)), direction, float(difference), float(noise))
            for found, difference, noise in zip(gradients, differences_B, noises_B, strict=True)
        )
        if worst <= tolerance:
            break
    return GradientCheck(worst, tolerance)


def _relative_error(
    gradients: Mapping[str, torch.Tensor | None], direction: Mapping[str, torch.Tensor], difference: float, noise: float
) -> float:
    """Compare a derivative with a difference that is known up to noise.

    Returns 0 where either is not finite, which is reported when the run meets it.
    """
    parts = [
        (gradient.double() * direction[name].double()).flatten()
        for name, gradient in gradients.items()
        if gradient is not None
    ]
    derivative = sum(float(part.sum()) for part in parts)
    typical = math.sqrt(sum(float(part.square().sum()) for part in parts))
    scale = max(abs(derivative), abs(difference), typical)
    return max(0.0, abs(derivative - difference) - noise) / scale if 0 < scale < math.inf else 0.0


def _padding_rows(model: nn.Module) -> dict[str, int]:
    """Return the row of the padding of every embedding that has one."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[module.weight]: module.padding_idx
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        and module.padding_idx is not None
        and module.weight in names
    }


def _scale(values: torch.Tensor) -> float:
    """Return the usual size of a parameter's entries; a hundredth for one that is all zero."""
    return float(values.double().square().mean().sqrt()) or 1e-2
