"""A kernel of a model in memory: the model is prepared once, then batches stream through it."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Self, final

import torch
from torch import nn

from ntkpipe.configs.errors import ConfigError, NtkPipeError
from ntkpipe.workers.jacobians.activations import called_modules, leaf_modules
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
    Seen,
    combined,
    cosine_normalised,
    exact_blocks,
    exact_diagonal_blocks,
    in_groups,
    joined_columns,
    sum_in_order,
)
from ntkpipe.workers.kernels.checks import checked_inputs, checked_norms, matching_labels
from ntkpipe.workers.kernels.definitions import KernelDefinition, kernel_definition
from ntkpipe.workers.kernels.features import SampleFeatures, batch_features, joined
from ntkpipe.workers.kernels.parameters import Patterns, parameter_weights
from ntkpipe.workers.kernels.preconditioning import check_moments, gradient_scales, mean_squares
from ntkpipe.workers.kernels.views import View
from ntkpipe.workers.memory import measure_footprint
from ntkpipe.workers.passes import PassPlan, plan_passes
from ntkpipe.workers.projections.base import AbstractProjection

BUDGET_BYTES = 4 * 2**30
"""What a batch and the factors of rows may take; a run has a budget of its own."""

Given = tuple[torch.Tensor, torch.Tensor | None, nn.Module]
"""Inputs, labels, and the model that sees them."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for; see :func:`ntkpipe.kernel_matrix`."""

    kernel: str
    parameters: Patterns | None
    modules: Sequence[str] | None
    preconditioner: Mapping[str, torch.Tensor] | None
    dtype: torch.dtype | None
    batch_size: int | None
    pseudo_gradient: str

    @property
    def definition(self) -> KernelDefinition:
        """What the kernel means."""
        return kernel_definition(self.kernel)

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: An option does not fit the kernel.
        """
        if self.dtype is not None and self.dtype not in TOLERANCE:
            raise ConfigError(f"dtype must be torch.float32 or torch.float64, found {self.dtype}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size} must be at least 1.")
        if self.modules is not None and self.definition.source != "modules":
            raise ConfigError(f"kernel {self.kernel!r} has no modules to choose; they are an option of em.")
        if self.parameters is not None and self.definition.functional is None:
            raise ConfigError(f"kernel {self.kernel!r} differentiates nothing, so it has no parameters to choose.")
        if self.preconditioner is not None and self.definition.functional is None:
            raise ConfigError(f"kernel {self.kernel!r} differentiates nothing, so there is nothing to precondition.")


@dataclass(frozen=True, slots=True)
class _Side:
    """Samples, and the model that sees them."""

    inputs: torch.Tensor
    labels: torch.Tensor | None
    engine: JacobianEngine
    view: View


@final
@dataclass(frozen=True, slots=True)
class Computation:
    """A model, or two checkpoints of it, ready to be looked at on one or two sets of samples."""

    definition: KernelDefinition
    weights: dict[str, float]
    """Of the parameters (or calls of modules) that the kernel is made of."""
    sides: tuple[_Side, ...]
    """Rows, and columns where they differ."""
    num_outputs: int
    passes: PassPlan

    @classmethod
    def prepare(cls, request: Request, given: Sequence[Given]) -> Self:
        """Bring models and inputs to the precision of the computation, and find routes."""
        request.check()
        definition = request.definition
        inputs = [checked_inputs(x) for x, _, _ in given]
        own = next(given[0][2].parameters(), None)
        if own is None:
            raise ConfigError("the model has no parameters.")
        # Half precision has too few digits for sums over parameters.
        precision = request.dtype or (own.dtype if own.dtype in TOLERANCE else torch.float32)
        moved = [x.to(device=own.device, dtype=precision if x.is_floating_point() else None) for x in inputs]
        for other in moved[1:]:
            if other.shape[1:] != moved[0].shape[1:]:
                raise ConfigError(
                    f"x has samples of shape {tuple(moved[0].shape[1:])}, x2 of shape {tuple(other.shape[1:])}."
                )
        labels = [
            matching_labels(request.kernel, definition, y, len(x)) for x, (_, y, _) in zip(moved, given, strict=True)
        ]
        probes = probe_samples(torch.cat(moved) if len(moved) > 1 else moved[0])
        prepared: dict[int, _Prepared] = {}
        for _, _, model in given:
            if id(model) not in prepared:
                prepared[id(model)] = _Prepared.of(model, request, precision, probes)
        ready = [prepared[id(model)] for _, _, model in given]
        if ready[0].weights != ready[-1].weights or ready[0].shapes != ready[-1].shapes:
            raise ConfigError("model and model2 differ in their parameters or modules; a kernel needs two of one kind.")
        first = ready[0].engine
        num_outputs = first.num_outputs(probes[:1])
        functional = definition.functional
        passes = plan_passes(
            measure_footprint(first, probes[:2], ready[0].view.modules),
            functional.num_vectors(num_outputs) if functional else 0,
            BUDGET_BYTES,
            request.batch_size,
            on_cpu=own.device.type == "cpu",
            split_vectors=not definition.per_output,
        )
        sides = [_Side(x, y, one.engine, one.view) for x, y, one in zip(moved, labels, ready, strict=True)]
        return cls(definition, ready[0].weights, tuple(sides), num_outputs, passes)

    def exact(self, *, layerwise: bool) -> Components:
        """Return components from products of factors; the rows' factors stay in memory, the columns' stream."""
        apart = {TOTAL} if layerwise or self._weighted is not None else set()
        total: Components = {}
        norms: list[list[SampleFeatures]] = [[] for _ in self.sides]
        for portion in self._portions():
            found: list[list[SampleFeatures]] = [[] for _ in self.sides]
            base = list(in_groups(self._base(0, portion, found[0]), self.passes.gram_samples))
            rows: list[Seen] = [{TOTAL: self.sides[0].view.of(group, "rows")} for group in base]
            if len(self.sides) == 1 and self.sides[0].view.symmetric:
                part = exact_diagonal_blocks(rows, apart)[TOTAL]
            else:
                columns = base if len(self.sides) == 1 else self._columns(portion, found[-1])
                view = self.sides[-1].view
                parts = [exact_blocks(rows, {TOTAL: view.of(column, "columns")}, apart) for column in columns]
                part = joined_columns([strip[TOTAL] for strip in parts])
            total = {name: total[name] + value if total else value for name, value in part.items()}
            for all_passes, one_pass in zip(norms, found, strict=True):
                all_passes.append(joined(one_pass))
        diagonals = [checked_norms(reduce(SampleFeatures.plus, all_passes)) for all_passes in norms]
        weighted = combined(total, self.weights if apart else None)
        kept = weighted if layerwise else {TOTAL: sum_in_order(weighted.values())}
        return self._normalised(kept, diagonals[0], diagonals[-1])

    def projected(self, operator: AbstractProjection, *, layerwise: bool) -> Components:
        """Return the estimate from features, in components if ``layerwise``."""
        rows, row_diagonal_N = self.features(0, operator, layerwise=layerwise)
        columns, column_diagonal_M = (
            (rows, row_diagonal_N) if len(self.sides) == 1 else self.features(1, operator, layerwise=layerwise)
        )
        products = rows @ columns.transpose(-1, -2)
        if len(self.sides) == 1:
            products = (products + products.transpose(-1, -2)) / 2
        components = dict(zip(self.weights, products, strict=True)) if layerwise else {TOTAL: products}
        return self._normalised(components, row_diagonal_N, column_diagonal_M)

    def features(
        self, side: int, operator: AbstractProjection | None, *, layerwise: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features, (N, K) or (G, N, K), and the exact (N,) diagonal."""
        batches = []
        for inputs, labels in self._split(side):
            passes = (self._pass(side, inputs, portion, labels, operator, layerwise) for portion in self._portions())
            batches.append(reduce(SampleFeatures.plus, passes))
        found = joined(batches)
        assert found.features is not None
        return found.features, checked_norms(found)

    def second_moments(self) -> dict[str, torch.Tensor]:
        """Return the mean squares of the gradients, in the shapes of the parameters."""
        engine = self.sides[0].engine
        shapes = {name: value.shape for name, value in engine.model.named_parameters()}
        (portion,) = self._portions()
        found = mean_squares(self._base(0, portion, []))
        return {name: found[name].view(shapes[name]) for name in self.weights}

    @property
    def _weighted(self) -> dict[str, float] | None:
        return None if all(weight == 1 for weight in self.weights.values()) else self.weights

    def _pass(
        self,
        side: int,
        inputs: torch.Tensor,
        portion: Portion,
        labels: torch.Tensor | None,
        operator: AbstractProjection | None,
        layerwise: bool,
    ) -> SampleFeatures:
        """Return what one pass over a batch gives; its factors are gone when the next one starts."""
        one = self.sides[side]
        jacobian = one.engine.run(inputs, portion, labels)
        return batch_features(one.view, jacobian, operator, weights=self._weighted, layerwise=layerwise)

    def _portions(self) -> list[Portion]:
        functionals = {self.definition.functional} if self.definition.functional else set()
        return portions(functionals, self.num_outputs, self.passes.max_vectors, self.sides[0].view.modules)

    def _columns(self, portion: Portion, norms: list[SampleFeatures]) -> Iterator[Factors]:
        return in_groups(self._base(len(self.sides) - 1, portion, norms), self.passes.gram_samples)

    def _base(self, side: int, portion: Portion, norms: list[SampleFeatures]) -> Iterator[Factors]:
        """Yield the factors of every batch, and leave their norms behind."""
        one = self.sides[side]
        for inputs, labels in self._split(side):
            jacobian = one.engine.run(inputs, portion, labels)
            norms.append(batch_features(one.view, jacobian, None, weights=self._weighted))
            yield one.view.base(jacobian)

    def _split(self, side: int) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        inputs, labels = self.sides[side].inputs, self.sides[side].labels
        for start in range(0, len(inputs), self.passes.batch_size):
            part = slice(start, start + self.passes.batch_size)
            yield inputs[part], None if labels is None else labels[part]

    def _normalised(self, components: Components, rows_N: torch.Tensor, columns_M: torch.Tensor) -> Components:
        if not self.definition.cosine:
            return components
        return {name: cosine_normalised(value, rows_N, columns_M) for name, value in components.items()}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A model with proved routes, and what the kernel looks at in it."""

    engine: JacobianEngine
    view: View
    weights: dict[str, float]
    shapes: dict[str, tuple[int, ...]]
    """Of the differentiated parameters."""

    @classmethod
    def of(cls, model: nn.Module, request: Request, precision: torch.dtype, probes: torch.Tensor) -> "_Prepared":
        """Bring a model to the precision of the computation and prove its routes.

        Raises:
            ConfigError: It cannot process the samples, or an option names something that it does not have.
            CoverageError: A parameter cannot be differentiated per sample.
        """
        if next(model.parameters()).dtype != precision:
            model = copy.deepcopy(model).to(precision)
        definition = request.definition
        try:
            weights = parameter_weights(model, request.parameters, probes)
            names = list(weights) if definition.functional else select_parameters(model)
            precise, samples = in_double_precision(model, probes)
            routes = plan_routes(precise, names, samples)
            if request.pseudo_gradient != "allow":
                require_passed(check_gradient(precise, names, samples))
            view = View(definition)
            if definition.source == "modules":
                calls = called_modules(model, request.modules, probes)
                view = replace(view, calls=calls, modules=tuple(leaf_modules(model, request.modules)))
                weights = dict.fromkeys(calls, 1.0)
            elif definition.functional is None:
                weights = dict.fromkeys([str(definition.source)], 1.0)
            if request.preconditioner is not None:
                check_moments(request.preconditioner, routes, "preconditioner")
                scales = {
                    name: scale.to(device=probes.device, dtype=precision)
                    for name, scale in gradient_scales(request.preconditioner, exponent=1, eps=0).items()
                }
                view = replace(view, scales=scales, scales_of="preconditioner")
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, NtkPipeError):
                raise
            shape = tuple(probes.shape[1:])
            raise ConfigError(f"the model cannot process samples of shape {shape}: {error}") from error
        return cls(JacobianEngine(model, routes), view, weights, {route.name: tuple(route.shape) for route in routes})
