"""By which route each parameter's gradients are computed, found out and proved on a few samples.

Every trainable parameter is first tried on the cheapest route that could cover it and compared, sample by sample, with
plain autograd on batches of one. A route that disagrees is not used: a layer that is fed something other than the batch
moves on to the next layout or route by itself. Two things a comparison cannot see are looked for: a use of a parameter
that no rule covers, whose contribution may happen to be zero, and a parameter whose gradient is zero on all of the samples.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, CoverageError
from ntkpipe.workers.jacobians.capture import Capture
from ntkpipe.workers.jacobians.factors.base import AbstractFactor
from ntkpipe.workers.jacobians.fallback import looped_gradients, vectorised_gradients
from ntkpipe.workers.jacobians.routes import LAYOUTS, Layout, ParameterRoute

NUM_PROBES = 4
"""Samples on which routes are proved."""

TOLERANCE = {torch.float32: 2e-2, torch.float64: 1e-8}
"""Largest relative difference of a gradient from plain autograd. In double precision rounding stays far below and a wrong
rule far above. In single precision one ReLU whose input is rounded to the other side of zero may move a gradient by a
percent."""

NOISE = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Differences below this share of the model's largest gradient entry are rounding, whatever the gradient."""


def select_parameters(model: nn.Module, patterns: Sequence[str] | None = None) -> list[str]:
    """Return the names of the trainable parameters, in the model's order; shared ones once, under their first name.

    Args:
        model: The model.
        patterns: Shell-style name patterns such as ``fc2.*``; None selects all.

    Raises:
        ConfigError: The model has no trainable parameter, or a pattern matches none.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ConfigError("the model has no trainable parameter (none has requires_grad=True); a kernel needs some.")
    if isinstance(patterns, str):
        patterns = [patterns]
    if patterns is not None and not patterns:
        raise ConfigError("parameters is empty; name at least one parameter, or leave it out to take all.")
    for pattern in patterns or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(unknown_name("parameter", pattern, names))
    return [name for name in names if patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)]


def check_modules(model: nn.Module) -> None:
    """Refuse modules whose outputs for one sample depend on the others, or on chance.

    Raises:
        CoverageError: Names the first such module.
    """
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or not module.track_running_stats or module.running_mean is None
        ):
            raise CoverageError(
                f"module {name!r} ({kind}) normalises with the statistics of the batch, which mixes samples: a row of "
                "the Jacobian is undefined. Call model.eval(), and keep track_running_stats=True."
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            raise CoverageError(
                f"module {name!r} ({kind}, p={module.p}) is active and makes the kernel random. Call model.eval()."
            )


def plan_routes(model: nn.Module, names: Sequence[str], inputs: torch.Tensor) -> tuple[ParameterRoute, ...]:
    """Find a route for every named parameter on a few samples, which had better differ.

    Args:
        model: The model, on the device of the run; best :func:`in_double_precision`.
        names: From :func:`select_parameters`.
        inputs: From :func:`probe_samples`.

    Raises:
        CoverageError: A sample's output depends on the other samples of its batch, or a parameter has no route whose
            gradients agree with plain autograd; the parameter is named.
    """
    check_modules(model)
    inputs, outputs_BC = _check_outputs(model, inputs)
    generator = torch.Generator().manual_seed(0)
    cotangents_VBC = torch.randn(1, *outputs_BC.shape, generator=generator, dtype=torch.float64).to(outputs_BC)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    proof = _Proof(model, inputs, cotangents_VBC)
    found: dict[str, ParameterRoute] = {}
    for attempt in _ATTEMPTS:
        missing = [ParameterRoute(name, shapes[name], "captured") for name in names if name not in found]
        if not missing:
            break
        for route, gradients in attempt(model, missing, inputs, cotangents_VBC):
            proof.add(route, gradients)
        found |= proof.agreeing()
    for name in names:
        if name not in found:
            raise CoverageError(
                f"parameter {name!r} has no route to its per-sample gradients that agrees with autograd: the model is "
                "not deterministic, or its backward pass depends on the batch."
            )
    return tuple(found[name] for name in names)


def in_double_precision(model: nn.Module, inputs: torch.Tensor) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of model and samples in float64, or both as they are if the model insists on its precision.

    Routes are proved on it: the numbers of two correct routes then agree to many digits.
    """
    samples = inputs.double() if inputs.is_floating_point() else inputs
    try:
        precise = copy.deepcopy(model).double()
        with torch.no_grad():
            precise(samples[:1])
    except (RuntimeError, TypeError, ValueError):
        return model, inputs
    return precise, samples


def probe_samples(inputs: torch.Tensor) -> torch.Tensor:
    """Return up to ``NUM_PROBES`` different samples, spread over the ones given."""
    positions = torch.linspace(0, len(inputs) - 1, min(len(inputs), 4 * NUM_PROBES)).round().long()
    chosen: list[torch.Tensor] = []
    for sample in inputs[positions]:
        if len(chosen) < NUM_PROBES and not any(torch.equal(sample, other) for other in chosen):
            chosen.append(sample)
    return torch.stack(chosen)


def _check_outputs(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the samples with finite outputs, two at least, and their outputs, which must not depend on the batch."""
    inputs = _at_least_two(inputs)
    with torch.no_grad():
        together, again = (Capture(model, {}, inputs).outputs_BC.detach() for _ in range(2))
        finite_B = torch.isfinite(together).all(dim=1)
        if not finite_B.any():
            raise CoverageError("the model's outputs are NaN or infinite; check its weights and its inputs.")
        alone = torch.cat([Capture(model, {}, inputs[i : i + 1]).outputs_BC.detach() for i in range(len(inputs))])
    # Samples that overflow are reported by name when their turn comes; they cannot prove anything.
    inputs, together, again, alone = (values[finite_B] for values in (inputs, together, again, alone))
    if not torch.equal(together, again):
        raise CoverageError("the model gives different outputs for the same samples; it must be deterministic.")
    if not _agree(together, alone):
        raise CoverageError(
            "the outputs of a sample change with the other samples of its batch; a row of the Jacobian is undefined. "
            "Look for normalisation over the batch, or a reshape that mixes samples."
        )
    return _at_least_two(inputs), _at_least_two(together)


def _at_least_two(samples: torch.Tensor) -> torch.Tensor:
    """Return the samples, a single one twice: one alone cannot tell a batch from a single position."""
    return samples if len(samples) > 1 else samples.repeat(2, *(1,) * (samples.dim() - 1))


Gradients = Callable[[int], torch.Tensor]
"""Sample to its (V, P) gradients."""

Attempt = Iterator[tuple[ParameterRoute, Gradients]]


def _captured(layout: Layout) -> Callable[..., Attempt]:
    """Return the attempt to capture parameters with one layout."""

    def attempt(
        model: nn.Module, missing: list[ParameterRoute], inputs: torch.Tensor, cotangents_VBC: torch.Tensor
    ) -> Attempt:
        parameters = dict(model.named_parameters())
        wanted = {parameters[route.name]: route for route in missing}
        try:
            factors = _capture(model, dict.fromkeys(wanted, layout), inputs, cotangents_VBC)
        except Exception:
            if layout != "shared":
                raise
            # Expanding something that all samples share broke the model, which may refuse a shape in any way it likes;
            # that may be one parameter's doing.
            factors = {}
            for parameter in wanted if len(wanted) > 1 else ():
                with suppress(Exception):
                    factors |= _capture(model, {parameter: layout}, inputs, cotangents_VBC)
        for parameter, factor in factors.items():
            yield replace(wanted[parameter], layout=layout), partial(_of_factor, factor)

    return attempt


def _capture(
    model: nn.Module, layouts: Mapping[nn.Parameter, Layout], inputs: torch.Tensor, cotangents_VBC: torch.Tensor
) -> dict[nn.Parameter, AbstractFactor]:
    capture = Capture(model, layouts, inputs)
    factors = capture.factors(capture.gradients(cotangents_VBC, batched=False))
    escaped = capture.escaped()
    return {parameter: factor for parameter, factor in factors.items() if parameter not in escaped}


def _vmap(
    model: nn.Module, missing: list[ParameterRoute], inputs: torch.Tensor, cotangents_VBC: torch.Tensor
) -> Attempt:
    try:
        found = vectorised_gradients(model, [route.name for route in missing], inputs, cotangents_VBC)
    except RuntimeError:
        # No batching rule for something in the model; the coverage report says that the slower route is taken.
        return
    for route in missing:
        yield replace(route, route="vmap"), partial(_of_values, found[route.name])


def _loop(
    model: nn.Module, missing: list[ParameterRoute], inputs: torch.Tensor, cotangents_VBC: torch.Tensor
) -> Attempt:
    found = looped_gradients(model, [route.name for route in missing], inputs, cotangents_VBC)
    for route in missing:
        yield replace(route, route="loop"), partial(_of_values, found[route.name])


def _of_factor(factor: AbstractFactor, sample: int) -> torch.Tensor:
    return factor.samples(sample, sample + 1).dense()[0]


def _of_values(values_VBP: torch.Tensor, sample: int) -> torch.Tensor:
    return values_VBP[:, sample]


_ATTEMPTS: tuple[Callable[..., Attempt], ...] = (*(_captured(layout) for layout in LAYOUTS), _vmap, _loop)
"""Cheapest first."""


class _Proof:
    """Compares gradients with plain autograd, one sample at a time, so that memory is that of one sample's gradients."""

    def __init__(self, model: nn.Module, inputs: torch.Tensor, cotangents_VBC: torch.Tensor) -> None:
        self._model = model
        self._inputs = inputs
        self._cotangents_VBC = cotangents_VBC
        self._candidates: list[tuple[ParameterRoute, Gradients]] = []
        self._noise = 0.0

    def add(self, route: ParameterRoute, gradients: Gradients) -> None:
        """Put a candidate forward."""
        self._candidates.append((route, gradients))

    def agreeing(self) -> dict[str, ParameterRoute]:
        """Return the candidates that agree on all samples, and forget all of them."""
        candidates, self._candidates = self._candidates, []
        names = [route.name for route, _ in candidates]
        failed: set[str] = set()
        moved: set[str] = set()
        for sample in range(len(self._inputs) if names else 0):
            one = slice(sample, sample + 1)
            truth = looped_gradients(self._model, names, self._inputs[one], self._cotangents_VBC[:, one])
            # A gradient that is zero but for rounding, such as an attention key's bias, has no largest entry to compare
            # with; the largest one of the whole model says what rounding is.
            largest = max(float(value.nan_to_num(0.0, 0.0, 0.0).abs().amax()) for value in truth.values())
            self._noise = max(self._noise, NOISE[self._cotangents_VBC.dtype] * largest)
            for route, gradients in candidates:
                expected_VP = truth[route.name][:, 0]
                if not _agree(gradients(sample), expected_VP, self._noise):
                    failed.add(route.name)
                if expected_VP.any():
                    moved.add(route.name)
        # Agreeing on zero proves nothing about rules for operations; torch.func differentiates the model itself.
        return {
            route.name: route
            for route, _ in candidates
            if route.name not in failed and (route.route != "captured" or route.name in moved)
        }


def _agree(found: torch.Tensor, expected: torch.Tensor, noise: float = 0.0) -> bool:
    """Compare within a fraction of the largest expected entry, or within ``noise``."""
    if found.shape != expected.shape:
        return False
    if not torch.isfinite(expected).all():
        # The gradient itself overflows or is undefined here; the run reports it with the sample's name.
        return True
    difference = float((found - expected).abs().amax())
    return difference <= max(TOLERANCE[found.dtype] * float(expected.abs().amax()), noise)
