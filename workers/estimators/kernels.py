"""Kernels of estimators: closed forms by name, matrices that are given, or functions."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.workers.kernels.formulas import closed_form, closed_form_operator
from ntkpipe.workers.operators.base import AbstractOperator
from ntkpipe.workers.operators.dense import DenseOperator
from ntkpipe.workers.solvers.arrays import Matrix, as_tensor

Array = npt.NDArray[Any]
Kernel = str | Callable[..., Matrix]

PRECOMPUTED = "precomputed"

DENSE_LIMIT = 20_000
"""Up to this many samples a kernel matrix is kept in memory; beyond, its blocks are computed whenever they are needed."""

BLOCK_ROWS = 1024
"""Samples that are predicted at a time."""


def fitted_kernel(kernel: Kernel, options: Mapping[str, Any], x: Array) -> AbstractOperator:
    """Return the kernel matrix of the samples that an estimator is fitted to.

    Args:
        kernel: The kind of a closed form, ``precomputed``, or a function (x, x2, **options) -> (N, M) of two tensors.
        options: Of the kernel.
        x: (N, ...) samples, or the (N, N) matrix that was computed.

    Raises:
        ConfigError: There is no such kernel, it does not take the options or the samples, or the matrix is not square.
        NumericalError: The matrix is not symmetric, or not finite.
    """
    if isinstance(kernel, str) and kernel != PRECOMPUTED and len(x) > DENSE_LIMIT:
        return closed_form_operator(kernel, torch.from_numpy(x), **options)
    return DenseOperator(_between(kernel, options, x, x))


def predictions(
    kernel: Kernel, options: Mapping[str, Any], x: Array, fitted_x: Array | None, alpha_NT: torch.Tensor
) -> Array:
    """Return the (M, T) products K(x, fitted_x) alpha, some samples at a time.

    Args:
        kernel: As for :func:`fitted_kernel`.
        options: Of the kernel.
        x: (M, ...) samples, or the (M, N) matrix that was computed.
        fitted_x: (N, ...) samples; None for a matrix that was computed.
        alpha_NT: Coefficients.
    """
    blocks = [x[start : start + BLOCK_ROWS] for start in range(0, len(x), BLOCK_ROWS)]
    products = [_between(kernel, options, block, fitted_x).double() @ alpha_NT for block in blocks]
    found: Array = torch.cat(products).numpy()
    return found


def _between(kernel: Kernel, options: Mapping[str, Any], x: Array, fitted_x: Array | None) -> torch.Tensor:
    if isinstance(kernel, str) and kernel == PRECOMPUTED:
        if options:
            raise ConfigError(f"a precomputed kernel has no options, found {sorted(options)}.")
        return as_tensor("the kernel matrix", x)
    assert fitted_x is not None
    # Samples are copied: they may be read-only, which tensors cannot be.
    left, right = as_tensor("x", x), None if fitted_x is x else as_tensor("x", fitted_x)
    if isinstance(kernel, str):
        return closed_form(kernel, left, right, **options)
    if not callable(kernel):
        raise ConfigError(f"kernel must be a name or a function, found {type(kernel).__name__}.")
    values = as_tensor("the kernel's result", kernel(left, left if right is None else right, **options))
    if tuple(values.shape) != (len(x), len(fitted_x)):
        raise ConfigError(f"the kernel returned shape {tuple(values.shape)}, expected ({len(x)}, {len(fitted_x)}).")
    return values
