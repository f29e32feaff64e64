"""Kernels and features of a model in memory: no run, no Ray, no storage."""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, NtkPipeError, NumericalError
from ntkpipe.configs.kernels import KernelKind
from ntkpipe.configs.projection import Projection
from ntkpipe.workers.jacobians.coverage import TOLERANCE, plan_routes, probe_samples, select_parameters
from ntkpipe.workers.jacobians.engine import BatchJacobian, JacobianEngine
from ntkpipe.workers.kernels.blocks import cosine_normalised, exact_components
from ntkpipe.workers.kernels.definitions import DEFINITIONS, KernelDefinition
from ntkpipe.workers.kernels.features import SampleFeatures, batch_features, penultimate, sum_in_order
from ntkpipe.workers.projections.registry import make_projection

TOTAL = "total"


def kernel_matrix(
    model: nn.Module,
    x: torch.Tensor,
    x2: torch.Tensor | None = None,
    *,
    kernel: KernelKind = "trntk",
    y: torch.Tensor | None = None,
    y2: torch.Tensor | None = None,
    projection: Projection | None = None,
    layerwise: bool = False,
    parameters: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 64,
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the kernel matrix of a model between ``x`` and ``x2``.

    Args:
        model: In eval mode; neither its mode nor its parameters are changed.
        x: (N, ...) inputs.
        x2: (M, ...) inputs; None means ``x``.
        kernel: ``trntk0`` sum_c <J_c(x), J_c(x')>, ``trntk`` its cosine, ``pntk`` the Gram matrix of the gradient of
            the summed outputs, ``ck`` of the penultimate activations.
        y: Labels of ``x``, for kernels that depend on labels; none of these does.
        y2: Labels of ``x2``.
        projection: Estimates the kernel from random features; None, or kind ``none``, computes it exactly. Cosine
            kernels are normalised by exact norms either way.
        layerwise: Return {parameter name: (N, M)} components that sum to the kernel. With a projection each component
            is estimated from K features of its own, which is another estimate of the kernel than without.
        parameters: Shell-style patterns of the parameters to differentiate; None takes all trainable ones.
        dtype: Precision of the computation, float32 or float64; None is the model's own, float32 for a model in half
            precision.
        batch_size: Samples per forward pass.

    Returns:
        (N, M), or a dictionary of (N, M) when ``layerwise``. Memory is O(N M) plus the factors of ``x``.

    Raises:
        ConfigError: An argument is not valid.
        CoverageError: The model mixes samples, is random, or a parameter cannot be differentiated per sample.
        NumericalError: A value is not finite.
    """
    definition = _definition(kernel, batch_size)
    if layerwise and definition.functional is None:
        raise ConfigError(f"kernel {kernel!r} has no parameters, so it has no layerwise components.")
    if projection is not None and projection.resolved_kind != "none" and definition.functional is not None:
        estimated = _projected(model, x, x2, definition, projection, layerwise, parameters, dtype, batch_size)
        return _checked(estimated, kernel)
    engine, inputs, inputs2 = _prepare(model, x, x2, parameters, dtype)
    functionals = {definition.functional} if definition.functional else set()
    row_batches = [engine.run(batch, functionals) for batch in inputs.split(batch_size)]
    if definition.functional is None:
        rows = torch.cat([penultimate(batch) for batch in row_batches])
        columns = (
            rows
            if inputs2 is None
            else torch.cat([penultimate(engine.run(batch, set())) for batch in inputs2.split(batch_size)])
        )
        product = rows @ columns.T
        return _checked((product + product.T) / 2 if inputs2 is None else product, kernel)
    row_factors = [batch.factors[definition.functional] for batch in row_batches]
    parts: list[dict[str, torch.Tensor]] = []
    column_diagonals = []
    for column in row_batches if inputs2 is None else (engine.run(b, functionals) for b in inputs2.split(batch_size)):
        found = exact_components(row_factors, column.factors[definition.functional])
        parts.append(found if layerwise else {TOTAL: sum_in_order(list(found.values()))})
        column_diagonals.append(_diagonal(definition, column))
    components = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    if inputs2 is None:
        components = {name: (value + value.T) / 2 for name, value in components.items()}
    if definition.cosine:
        row_diagonal = torch.cat([_diagonal(definition, batch) for batch in row_batches])
        column_diagonal = torch.cat(column_diagonals)
        components = {name: cosine_normalised(v, row_diagonal, column_diagonal) for name, v in components.items()}
    return _checked(components if layerwise else components[TOTAL], kernel)


def features(
    model: nn.Module,
    x: torch.Tensor,
    *,
    kernel: KernelKind = "trntk0",
    y: torch.Tensor | None = None,
    projection: Projection | None = None,
    parameters: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = 64,
) -> torch.Tensor:
    """Return (N, K) features whose Gram matrix estimates the kernel (equals it for ``ck``).

    Args:
        model: In eval mode.
        x: (N, ...) inputs.
        kernel: As for :func:`kernel_matrix`; rows of cosine kernels are divided by their exact norm.
        y: Labels, for kernels that depend on labels; none of these does.
        projection: The random map; None is ``Projection(dim=2048, kind="auto", seed=0)``.
        parameters: As for :func:`kernel_matrix`.
        dtype: As for :func:`kernel_matrix`.
        batch_size: Samples per forward pass.

    Raises:
        ConfigError: An argument is not valid, such as a projection of kind ``none`` for a Jacobian kernel.
        CoverageError: As for :func:`kernel_matrix`.
        NumericalError: A value is not finite.
    """
    definition = _definition(kernel, batch_size)
    found, diagonal_N = _all_features(
        model, x, definition, projection or Projection(), False, parameters, dtype, batch_size
    )
    if definition.cosine:
        found = torch.where(diagonal_N[:, None] > 0, found / diagonal_N[:, None].sqrt(), 0.0)
    checked = _checked(found, kernel)
    assert isinstance(checked, torch.Tensor)
    return checked


def _definition(kernel: str, batch_size: int) -> KernelDefinition:
    if batch_size < 1:
        raise ConfigError(f"batch_size = {batch_size} must be at least 1.")
    if kernel not in DEFINITIONS:
        raise ConfigError(unknown_name("kernel", kernel, DEFINITIONS))
    return DEFINITIONS[kernel]


def _prepare(
    model: nn.Module,
    x: torch.Tensor,
    x2: torch.Tensor | None,
    parameters: Sequence[str] | None,
    dtype: torch.dtype | None,
) -> tuple[JacobianEngine, torch.Tensor, torch.Tensor | None]:
    """Return the engine and the inputs in the precision and on the device of the computation."""
    if dtype is not None and dtype not in TOLERANCE:
        raise ConfigError(f"dtype must be torch.float32 or torch.float64, found {dtype}.")
    names = select_parameters(model, parameters)
    own = dict(model.named_parameters())[names[0]]
    # Half precision has too few digits for sums over parameters.
    precision = dtype or (own.dtype if own.dtype in TOLERANCE else torch.float32)
    if precision != own.dtype:
        model = copy.deepcopy(model).to(precision)
    x, *others = (_converted(inputs, precision, own.device) for inputs in (x, x2) if inputs is not None)
    for other in others:
        if other.shape[1:] != x.shape[1:]:
            raise ConfigError(f"x has samples of shape {tuple(x.shape[1:])}, x2 of shape {tuple(other.shape[1:])}.")
    probes = probe_samples(torch.cat([x, *others]) if others else x)
    try:
        routes = plan_routes(model, names, probes)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, NtkPipeError):
            raise
        raise ConfigError(f"the model cannot process samples of shape {tuple(x.shape[1:])}: {error}") from error
    return JacobianEngine(model, routes), x, others[0] if others else None


def _converted(inputs: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if not isinstance(inputs, torch.Tensor):
        raise ConfigError(f"inputs must be a torch.Tensor of shape (N, ...), found {type(inputs).__name__}.")
    if inputs.dim() == 0:
        raise ConfigError("inputs must have shape (N, ...), found a single number.")
    if len(inputs) == 0:
        raise ConfigError("there are no samples: the inputs have length 0.")
    if not inputs.is_floating_point():
        return inputs.to(device)
    bad = (~torch.isfinite(inputs).reshape(len(inputs), -1).all(1)).nonzero()
    if len(bad):
        raise ConfigError(f"sample {int(bad[0, 0])} of the inputs is NaN or infinite.")
    return inputs.to(device=device, dtype=dtype)


def _diagonal(definition: KernelDefinition, batch: BatchJacobian) -> torch.Tensor:
    return _checked_norms(batch_features(definition, batch, None, layerwise=False))


def _checked_norms(found: SampleFeatures) -> torch.Tensor:
    """Return the diagonal.

    Raises:
        NumericalError: A norm is lost in the precision of the computation.
    """
    if found.underflow_B.any():
        raise NumericalError(
            "the gradient of a sample is so small that its squared norm is lost in float32. Use dtype=torch.float64."
        )
    return found.diagonal_B


def _all_features(
    model: nn.Module,
    x: torch.Tensor,
    definition: KernelDefinition,
    projection: Projection,
    layerwise: bool,
    parameters: Sequence[str] | None,
    dtype: torch.dtype | None,
    batch_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features, (N, K) or (G, N, K), and the exact (N,) diagonal."""
    engine, inputs, _ = _prepare(model, x, None, parameters, dtype)
    functionals = {definition.functional} if definition.functional else set()
    operator = make_projection(projection) if definition.functional else None
    parts = [
        batch_features(definition, engine.run(batch, functionals), operator, layerwise=layerwise)
        for batch in inputs.split(batch_size)
    ]
    stacked = torch.cat([part.features for part in parts if part.features is not None], dim=-2)
    return stacked, torch.cat([_checked_norms(part) for part in parts])


def _projected(
    model: nn.Module,
    x: torch.Tensor,
    x2: torch.Tensor | None,
    definition: KernelDefinition,
    projection: Projection,
    layerwise: bool,
    parameters: Sequence[str] | None,
    dtype: torch.dtype | None,
    batch_size: int,
) -> torch.Tensor | dict[str, torch.Tensor]:
    rows, row_diagonal = _all_features(model, x, definition, projection, layerwise, parameters, dtype, batch_size)
    columns, column_diagonal = (
        (rows, row_diagonal)
        if x2 is None
        else _all_features(model, x2, definition, projection, layerwise, parameters, dtype, batch_size)
    )
    products = rows @ columns.transpose(-1, -2)
    if x2 is None:
        products = (products + products.transpose(-1, -2)) / 2
    if definition.cosine:
        flat = products.reshape(-1, *products.shape[-2:])
        products = torch.stack([cosine_normalised(p, row_diagonal, column_diagonal) for p in flat]).reshape_as(products)
    return dict(zip(select_parameters(model, parameters), products, strict=True)) if layerwise else products


def _checked(values: torch.Tensor | dict[str, torch.Tensor], kernel: str) -> torch.Tensor | dict[str, torch.Tensor]:
    for value in values.values() if isinstance(values, dict) else (values,):
        # One sample without a finite gradient spoils an entry of every other one, so the worst row is the culprit.
        num_bad = (~torch.isfinite(value)).sum(dim=1)
        if int(num_bad.max()):
            raise NumericalError(
                f"kernel {kernel!r} is not finite for sample {int(num_bad.argmax())}: its gradient overflows or is "
                "undefined. Try dtype=torch.float64, or look for a non-differentiable point."
            )
    return values
