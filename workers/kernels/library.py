"""Kernels and features of a model in memory: no run, no Ray, no storage."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.projection import Projection
from ntkpipe.workers.kernels.blocks import sum_in_order
from ntkpipe.workers.kernels.checks import check_finite
from ntkpipe.workers.kernels.computation import Computation, Request
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.kernels.parameters import Patterns
from ntkpipe.workers.projections.registry import make_projection


def kernel_matrix(
    model: nn.Module,
    x: torch.Tensor,
    x2: torch.Tensor | None = None,
    *,
    kernel: str = "trntk",
    y: torch.Tensor | None = None,
    y2: torch.Tensor | None = None,
    model2: nn.Module | None = None,
    projection: Projection | None = None,
    layerwise: bool = False,
    parameters: Patterns | None = None,
    modules: Sequence[str] | None = None,
    preconditioner: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    pseudo_gradient: Literal["refuse", "allow"] = "refuse",
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the kernel matrix of a model between ``x`` and ``x2``.

    Args:
        model: In eval mode; neither its mode nor its parameters are changed.
        x: (N, ...) inputs.
        x2: (M, ...) inputs; None means ``x``.
        kernel: One of the kinds of :class:`ntkpipe.configs.kernels.empirical.EmpiricalKernel`, such as ``trntk``,
            ``pntk``, ``class:3``, ``signgd``; or ``full``, whose rows and columns are (sample, output) pairs, outputs
            fastest; or ``cotangents``, sum_j <J(x)^T v_j, J(x')^T v'_j> with the (N, V, C) output vectors given as ``y``.
        y: Labels of ``x``, for kernels that depend on labels.
        y2: Labels of ``x2``.
        model2: Another checkpoint of the model, by which columns are seen: K(x, x') = <g(x; model), g(x'; model2)>.
        projection: Estimates the kernel from random features; None, or kind ``none``, computes it exactly. Cosine
            kernels are normalised by exact norms either way.
        layerwise: Return {parameter name: (N, M)} components that sum to the kernel. With a projection each component
            is estimated from K features of its own, which is another estimate of the kernel than without.
        parameters: Shell-style patterns of the parameters to differentiate, or ``last:2`` for those of the last two
            modules, alone or with weights: see :func:`ntkpipe.workers.kernels.parameters.parameter_weights`. None takes
            all trainable ones.
        modules: Patterns of the leaf modules of kernel ``em``; None takes all.
        preconditioner: By parameter name, a tensor D >= 0 of its shape: gradients are multiplied as g D g'.
        dtype: Precision of the computation, float32 or float64; None is the model's own, float32 for a model in half
            precision.
        batch_size: Samples per forward pass at the most; by default as many as are fast, up to 256, and fit.
        pseudo_gradient: Whether a model is refused whose backward pass is not the derivative of its forward pass.

    Returns:
        (N, M), or a dictionary of (N, M) when ``layerwise``; (N C, M C) for ``full``. Memory is O(N M) plus, for exact
        kernels, the factors of ``x``.

    Raises:
        ConfigError: An argument is not valid.
        CoverageError: The model mixes samples, is random, or a parameter cannot be differentiated per sample.
        NumericalError: A value is not finite.
    """
    definition = kernel_definition(kernel)
    if layerwise and definition.is_own_feature:
        raise ConfigError(f"kernel {kernel!r} has no parameters, so it has no layerwise components.")
    request = Request(kernel, parameters, modules, preconditioner, dtype, batch_size, pseudo_gradient)
    second = (x if x2 is None else x2, y if x2 is None else y2, model if model2 is None else model2)
    sides = [(x, y, model)] if x2 is None and model2 is None else [(x, y, model), second]
    exact = projection is None or projection.resolved_kind == "none" or definition.is_own_feature
    if not exact and (definition.per_output or "signs" in (definition.row_entries, definition.column_entries)):
        raise ConfigError(f"kernel {kernel!r} cannot be estimated from random features; leave the projection out.")
    work = Computation.prepare(request, sides)
    if exact or projection is None:
        components = work.exact(layerwise=layerwise)
    else:
        components = work.projected(make_projection(projection), layerwise=layerwise)
    if layerwise:
        return {name: check_finite(value, kernel) for name, value in components.items()}
    return check_finite(sum_in_order(components.values()), kernel)


def features(
    model: nn.Module,
    x: torch.Tensor,
    *,
    kernel: str = "trntk0",
    y: torch.Tensor | None = None,
    projection: Projection | None = None,
    parameters: Patterns | None = None,
    modules: Sequence[str] | None = None,
    preconditioner: Mapping[str, torch.Tensor] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    pseudo_gradient: Literal["refuse", "allow"] = "refuse",
) -> torch.Tensor:
    """Return (N, K) features whose Gram matrix estimates the kernel (equals it for ``ck`` and ``nngp``).

    The first and the last K / 2 features are two independent sketches: twice the Gram matrix of either estimates the
    kernel too, and half the difference of the two is a standard error.

    Args:
        model: In eval mode.
        x: (N, ...) inputs.
        kernel: As for :func:`kernel_matrix`, but ``full`` and kernels of signs; rows of cosine kernels are divided by
            their exact norm.
        y: Labels, for kernels that depend on labels.
        projection: The random map; None is ``Projection(dim=2048, kind="auto", seed=0)``.
        parameters: As for :func:`kernel_matrix`.
        modules: As for :func:`kernel_matrix`.
        preconditioner: As for :func:`kernel_matrix`.
        dtype: As for :func:`kernel_matrix`.
        batch_size: As for :func:`kernel_matrix`.
        pseudo_gradient: As for :func:`kernel_matrix`.

    Raises:
        ConfigError: An argument is not valid, such as a projection of kind ``none`` for a Jacobian kernel.
        CoverageError: As for :func:`kernel_matrix`.
        NumericalError: A value is not finite.
    """
    definition = kernel_definition(kernel)
    if definition.per_output or "signs" in (definition.row_entries, definition.column_entries):
        raise ConfigError(f"kernel {kernel!r} has no features with K numbers per sample.")
    operator = None if definition.is_own_feature else make_projection(projection or Projection())
    request = Request(kernel, parameters, modules, preconditioner, dtype, batch_size, pseudo_gradient)
    found_NK, diagonal_N = Computation.prepare(request, [(x, y, model)]).features(0, operator, layerwise=False)
    if definition.cosine:
        found_NK = torch.where(diagonal_N[:, None] > 0, found_NK / diagonal_N[:, None].sqrt(), 0.0)
    return check_finite(found_NK, kernel)


def second_moments(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    parameters: Patterns | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    pseudo_gradient: Literal["refuse", "allow"] = "refuse",
) -> dict[str, torch.Tensor]:
    """Return the diagonal of the empirical Fisher matrix: means over samples of the squared gradients of the loss.

    ``preconditioner = {name: (v + eps) ** -0.5 for name, v in second_moments(model, x, y).items()}`` gives the kernel of
    Adam's update, exponent -1 that of the natural gradient with a diagonal Fisher matrix.

    Args:
        model: In eval mode.
        x: (N, ...) inputs.
        y: Classes, or real targets.
        parameters: As for :func:`kernel_matrix`.
        dtype: As for :func:`kernel_matrix`.
        batch_size: As for :func:`kernel_matrix`.
        pseudo_gradient: As for :func:`kernel_matrix`.

    Returns:
        Tensors of the parameters' shapes, in float64.

    Raises:
        ConfigError: An argument is not valid.
        CoverageError: As for :func:`kernel_matrix`.
    """
    request = Request("loss", parameters, None, None, dtype, batch_size, pseudo_gradient)
    return Computation.prepare(request, [(x, y, model)]).second_moments()
