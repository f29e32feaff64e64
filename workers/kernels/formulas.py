"""Kernels that need no model, in memory: closed forms and random features by name."""

import math
from typing import Any

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_kernel
from ntkpipe.workers.kernels.checks import check_finite, checked_inputs
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.distance_tiles import DistanceTiles, of_distances
from ntkpipe.workers.kernels.closed_form.registry import make_closed_form
from ntkpipe.workers.kernels.closed_form.tiles import FormulaTiles
from ntkpipe.workers.kernels.random_features.registry import make_random_features
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.solvers.prediction import FORMULA_FLOPS


def closed_form(name: str, x: torch.Tensor, x2: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
    """Return a kernel matrix from a formula, such as ``closed_form("ntk", x, depth=3, activation="relu")``.

    Args:
        name: The kind of a closed form; ``ntkpipe schema`` lists them with their options.
        x: (N, ...) samples: vectors, images, graphs, paths or indices, as the kernel wants them.
        x2: (M, ...) samples; None means ``x``.
        options: Of the kernel, such as ``bandwidth``.

    Returns:
        (N, M) in the precision of ``x``, float64 for integers; computed in float64.

    Raises:
        ConfigError: There is no such kernel, an option is not valid, or the samples do not fit the kernel.
        NumericalError: A value is not finite in the precision of ``x``.
    """
    kernel = make_closed_form(load_kernel(name, options))
    values = kernel.block(_doubles(x), None if x2 is None else _doubles(x2))
    return check_finite(values.to(x.dtype) if x.is_floating_point() else values, name)


def closed_form_operator(
    name: str, x: torch.Tensor, *, block_rows: int = 1024, dtype: torch.dtype = torch.float64, **options: Any
) -> BlockedOperator:
    """Return a kernel matrix that is known by its products: every block is computed when it is needed and forgotten.

    ``ntkpipe.solve(ntkpipe.closed_form_operator("laplace", x, bandwidth=10.0), y, method="pcg")`` solves a system whose
    matrix fits no memory.

    Args:
        name: As for :func:`closed_form`.
        x: As for :func:`closed_form`.
        block_rows: Rows and columns of a block.
        dtype: Of the blocks. Kernels of the Euclidean distance are several times faster in float32; the others are
            computed in float64 and rounded.
        options: As for :func:`closed_form`.

    Raises:
        ConfigError: As for :func:`closed_form`, or dtype is neither float32 nor float64.
    """
    if block_rows < 1:
        raise ConfigError(f"block_rows = {block_rows} must be at least 1.")
    if dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"dtype must be torch.float32 or torch.float64, found {dtype}.")
    return formula_operator(make_closed_form(load_kernel(name, options)), _doubles(x), block_rows, dtype)


def formula_operator(
    kernel: AbstractClosedForm, x: torch.Tensor, block_rows: int, dtype: torch.dtype
) -> BlockedOperator:
    """Return the kernel matrix of samples as the kernel wants them, see :func:`closed_form_operator`."""
    single = dtype == torch.float32
    tiles = (
        DistanceTiles(kernel, x, block_rows)
        if single and of_distances(kernel)
        else FormulaTiles(kernel, x, block_rows, single=single)
    )
    return BlockedOperator(tiles, entry_flops=2.0 * math.prod(x.shape[1:]) + FORMULA_FLOPS)


def random_features(name: str, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return random features, such as ``random_features("fourier_features", x, dim=1024, bandwidth=2.0)``.

    Their Gram matrix estimates a kernel without bias, as the kind says; ``universal_features`` and
    ``graph_walk_features`` come in two halves, of which the second enters inner products with a minus sign.

    Args:
        name: The kind of a random map; ``ntkpipe schema`` lists them with their options.
        x: (N, ...) samples, as the map wants them.
        options: Of the map, such as ``dim`` and ``seed``.

    Returns:
        (N, K) in the precision of ``x``, float64 for integers; computed in float64.

    Raises:
        ConfigError: There is no such map, an option is not valid, or the samples do not fit it.
        NumericalError: A value is not finite in the precision of ``x``.
    """
    values = make_random_features(load_kernel(name, options)).features(_doubles(x))
    return check_finite(values.to(x.dtype) if x.is_floating_point() else values, name)


def _doubles(x: torch.Tensor) -> torch.Tensor:
    samples = checked_inputs(x)
    return samples.double() if samples.is_floating_point() else samples
