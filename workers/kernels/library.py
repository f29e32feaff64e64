"""Kernels and features of a model in memory: no run, no Ray, no storage."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, Self

import torch
from torch import nn

from ntkpipe.configs.errors import ConfigError, NtkPipeError, NumericalError
from ntkpipe.configs.projection import Projection
from ntkpipe.workers.jacobians.coverage import (
    TOLERANCE,
    in_double_precision,
    plan_routes,
    probe_samples,
    select_parameters,
)
from ntkpipe.workers.jacobians.engine import Factors, JacobianEngine, Portion, portions
from ntkpipe.workers.jacobians.truth import check_gradient, require_passed
from ntkpipe.workers.kernels.blocks import (
    TOTAL,
    Components,
    cosine_normalised,
    exact_block,
    exact_diagonal_block,
    in_groups,
    joined_columns,
    sum_in_order,
)
from ntkpipe.workers.kernels.definitions import KernelDefinition, kernel_definition
from ntkpipe.workers.kernels.features import SampleFeatures, batch_features, joined, penultimate
from ntkpipe.workers.memory import measure_footprint
from ntkpipe.workers.passes import PassPlan, plan_passes
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.registry import make_projection

BUDGET_BYTES = 4 * 2**30
"""What a batch and the factors of rows may take; a run has a budget of its own."""


def kernel_matrix(
    model: nn.Module,
    x: torch.Tensor,
    x2: torch.Tensor | None = None,
    *,
    kernel: str = "trntk",
    y: torch.Tensor | None = None,
    y2: torch.Tensor | None = None,
    projection: Projection | None = None,
    layerwise: bool = False,
    parameters: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    pseudo_gradient: Literal["refuse", "allow"] = "refuse",
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return the kernel matrix of a model between ``x`` and ``x2``.

    Args:
        model: In eval mode; neither its mode nor its parameters are changed.
        x: (N, ...) inputs.
        x2: (M, ...) inputs; None means ``x``.
        kernel: One of the kinds of :class:`ntkpipe.configs.kernels.KernelConfig`, such as ``trntk``, ``pntk``,
            ``lpntk``, ``class:3``, ``probe:8``; or ``full``, whose rows and columns are (sample, output) pairs, outputs
            fastest; or ``cotangents``, sum_j <J(x)^T v_j, J(x')^T v'_j> with the (N, V, C) output vectors given as ``y``.
        y: Labels of ``x``, for kernels that depend on labels.
        y2: Labels of ``x2``.
        projection: Estimates the kernel from random features; None, or kind ``none``, computes it exactly. Cosine
            kernels are normalised by exact norms either way.
        layerwise: Return {parameter name: (N, M)} components that sum to the kernel. With a projection each component
            is estimated from K features of its own, which is another estimate of the kernel than without.
        parameters: Shell-style patterns of the parameters to differentiate; None takes all trainable ones.
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
    if layerwise and definition.functional is None:
        raise ConfigError(f"kernel {kernel!r} has no parameters, so it has no layerwise components.")
    sides = [(x, y)] if x2 is None else [(x, y), (x2, y2)]
    work = _Computation.prepare(model, kernel, sides, parameters, dtype, batch_size, pseudo_gradient)
    if definition.functional is None:
        return _checked(work.activations(), kernel)
    if projection is None or projection.resolved_kind == "none":
        components = work.exact(layerwise=layerwise)
    elif definition.per_output:
        raise ConfigError("kernel 'full' has no features with K numbers per sample; leave the projection out.")
    else:
        components = work.projected(make_projection(projection), layerwise=layerwise)
    if layerwise:
        return _checked(components, kernel)
    return _checked(sum_in_order(components.values()), kernel)


def features(
    model: nn.Module,
    x: torch.Tensor,
    *,
    kernel: str = "trntk0",
    y: torch.Tensor | None = None,
    projection: Projection | None = None,
    parameters: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int | None = None,
    pseudo_gradient: Literal["refuse", "allow"] = "refuse",
) -> torch.Tensor:
    """Return (N, K) features whose Gram matrix estimates the kernel (equals it for ``ck``).

    The first and the last K / 2 features are two independent sketches: twice the Gram matrix of either estimates the
    kernel too, and half the difference of the two is a standard error.

    Args:
        model: In eval mode.
        x: (N, ...) inputs.
        kernel: As for :func:`kernel_matrix`, but ``full``; rows of cosine kernels are divided by their exact norm.
        y: Labels, for kernels that depend on labels.
        projection: The random map; None is ``Projection(dim=2048, kind="auto", seed=0)``.
        parameters: As for :func:`kernel_matrix`.
        dtype: As for :func:`kernel_matrix`.
        batch_size: As for :func:`kernel_matrix`.
        pseudo_gradient: As for :func:`kernel_matrix`.

    Raises:
        ConfigError: An argument is not valid, such as a projection of kind ``none`` for a Jacobian kernel.
        CoverageError: As for :func:`kernel_matrix`.
        NumericalError: A value is not finite.
    """
    definition = kernel_definition(kernel)
    if definition.per_output:
        raise ConfigError("kernel 'full' has no features with K numbers per sample.")
    operator = make_projection(projection or Projection()) if definition.functional else None
    work = _Computation.prepare(model, kernel, [(x, y)], parameters, dtype, batch_size, pseudo_gradient)
    found_NK, diagonal_N = work.features(0, operator, layerwise=False)
    if definition.cosine:
        found_NK = torch.where(diagonal_N[:, None] > 0, found_NK / diagonal_N[:, None].sqrt(), 0.0)
    checked = _checked(found_NK, kernel)
    assert isinstance(checked, torch.Tensor)
    return checked


@dataclass(frozen=True, slots=True)
class _Computation:
    """A model ready to be differentiated on one or two sets of samples."""

    engine: JacobianEngine
    definition: KernelDefinition
    names: tuple[str, ...]
    """Of the differentiated parameters."""
    sides: tuple[tuple[torch.Tensor, torch.Tensor | None], ...]
    """Inputs and labels of the rows, and of the columns where they differ."""
    num_outputs: int
    passes: PassPlan

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        kernel: str,
        sides: list[tuple[torch.Tensor, torch.Tensor | None]],
        parameters: Sequence[str] | None,
        dtype: torch.dtype | None,
        batch_size: int | None,
        pseudo_gradient: str,
    ) -> Self:
        """Bring model and inputs to the precision of the computation and find routes."""
        if dtype is not None and dtype not in TOLERANCE:
            raise ConfigError(f"dtype must be torch.float32 or torch.float64, found {dtype}.")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size = {batch_size} must be at least 1.")
        definition = kernel_definition(kernel)
        names = select_parameters(model, parameters)
        own = dict(model.named_parameters())[names[0]]
        # Half precision has too few digits for sums over parameters.
        precision = dtype or (own.dtype if own.dtype in TOLERANCE else torch.float32)
        if precision != own.dtype:
            model = copy.deepcopy(model).to(precision)
        inputs = [_converted(x, precision, own.device) for x, _ in sides]
        labels = [_matching(kernel, definition, y, len(x)) for x, (_, y) in zip(inputs, sides, strict=True)]
        for other in inputs[1:]:
            if other.shape[1:] != inputs[0].shape[1:]:
                raise ConfigError(
                    f"x has samples of shape {tuple(inputs[0].shape[1:])}, x2 of shape {tuple(other.shape[1:])}."
                )
        probes = probe_samples(torch.cat(inputs) if len(inputs) > 1 else inputs[0])
        try:
            precise, samples = in_double_precision(model, probes)
            engine = JacobianEngine(model, plan_routes(precise, names, samples))
            if pseudo_gradient != "allow":
                require_passed(check_gradient(precise, names, samples))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, NtkPipeError):
                raise
            shape = tuple(inputs[0].shape[1:])
            raise ConfigError(f"the model cannot process samples of shape {shape}: {error}") from error
        num_outputs = engine.num_outputs(probes[:1])
        num_vectors = definition.functional.num_vectors(num_outputs) if definition.functional else 0
        passes = plan_passes(
            measure_footprint(engine, probes[:2]),
            num_vectors,
            BUDGET_BYTES,
            batch_size,
            on_cpu=own.device.type == "cpu",
        )
        return cls(engine, definition, tuple(names), tuple(zip(inputs, labels, strict=True)), num_outputs, passes)

    def activations(self) -> torch.Tensor:
        """Return the Gram matrix of penultimate activations."""
        sides = [
            torch.cat([penultimate(self.engine.run(inputs, Portion(frozenset()))) for inputs, _ in self._split(side)])
            for side in range(len(self.sides))
        ]
        product = sides[0] @ sides[-1].T
        return (product + product.T) / 2 if len(sides) == 1 else product

    def exact(self, *, layerwise: bool) -> Components:
        """Return components from products of factors; the rows' factors stay in memory, the columns' stream."""
        total: Components = {}
        norms: list[list[SampleFeatures]] = [[] for _ in self.sides]
        for portion in self._portions():
            found: list[list[SampleFeatures]] = [[] for _ in self.sides]
            rows = list(in_groups(self._factors(0, portion, found[0]), self.passes.gram_samples))
            if len(self.sides) == 1:
                part = exact_diagonal_block(rows, layerwise=layerwise)
            else:
                columns = in_groups(self._factors(1, portion, found[1]), self.passes.gram_samples)
                part = joined_columns([exact_block(rows, column, layerwise=layerwise) for column in columns])
            total = {name: total[name] + value if total else value for name, value in part.items()}
            for all_passes, one_pass in zip(norms, found, strict=True):
                all_passes.append(joined(one_pass))
        diagonals = [_checked_norms(reduce(SampleFeatures.plus, all_passes)) for all_passes in norms]
        return self._normalised(total, diagonals[0], diagonals[-1])

    def projected(self, operator: AbstractProjection, *, layerwise: bool) -> Components:
        """Return the estimate from features, in components if ``layerwise``."""
        rows, row_diagonal_N = self.features(0, operator, layerwise=layerwise)
        columns, column_diagonal_M = (
            (rows, row_diagonal_N) if len(self.sides) == 1 else self.features(1, operator, layerwise=layerwise)
        )
        products = rows @ columns.transpose(-1, -2)
        if len(self.sides) == 1:
            products = (products + products.transpose(-1, -2)) / 2
        components = dict(zip(self.names, products, strict=True)) if layerwise else {TOTAL: products}
        return self._normalised(components, row_diagonal_N, column_diagonal_M)

    def features(
        self, side: int, operator: AbstractProjection | None, *, layerwise: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features, (N, K) or (G, N, K), and the exact (N,) diagonal."""
        batches = []
        for inputs, labels in self._split(side):
            passes = (self._pass(inputs, portion, labels, operator, layerwise) for portion in self._portions())
            batches.append(reduce(SampleFeatures.plus, passes))
        found = joined(batches)
        assert found.features is not None
        return found.features, _checked_norms(found)

    def _pass(
        self,
        inputs: torch.Tensor,
        portion: Portion,
        labels: torch.Tensor | None,
        operator: AbstractProjection | None,
        layerwise: bool,
    ) -> SampleFeatures:
        """Return what one pass over a batch gives; its factors are gone when the next one starts."""
        return batch_features(self.definition, self.engine.run(inputs, portion, labels), operator, layerwise=layerwise)

    def _portions(self) -> list[Portion]:
        functionals = {self.definition.functional} if self.definition.functional else set()
        max_vectors = self.num_outputs if self.definition.per_output else self.passes.max_vectors
        return portions(functionals, self.num_outputs, max_vectors)

    def _factors(self, side: int, portion: Portion, norms: list[SampleFeatures]) -> Iterator[Factors]:
        """Yield the factors of every batch, and leave their norms behind."""
        for inputs, labels in self._split(side):
            jacobian = self.engine.run(inputs, portion, labels)
            norms.append(batch_features(self.definition, jacobian, None, layerwise=False))
            (factors,) = jacobian.factors.values()
            yield {name: f.per_output() for name, f in factors.items()} if self.definition.per_output else factors

    def _split(self, side: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        inputs, labels = self.sides[side]
        for start in range(0, len(inputs), self.passes.batch_size):
            part = slice(start, start + self.passes.batch_size)
            yield inputs[part], None if labels is None else labels[part]

    def _normalised(self, components: Components, rows_N: torch.Tensor, columns_M: torch.Tensor) -> Components:
        if not self.definition.cosine:
            return components
        return {name: cosine_normalised(value, rows_N, columns_M) for name, value in components.items()}


def _matching(
    kernel: str, definition: KernelDefinition, labels: torch.Tensor | None, num_samples: int
) -> torch.Tensor | None:
    if definition.functional is None or not definition.functional.needs_labels:
        return None
    if labels is None:
        raise ConfigError(f"kernel {kernel!r} depends on labels; give y, and y2 for x2.")
    if len(labels) != num_samples:
        raise ConfigError(f"kernel {kernel!r}: there are {num_samples} samples but {len(labels)} labels.")
    return labels


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
