"""By which route each parameter's gradients are computed, found out and proved on a few samples.

Every trainable parameter is first tried on the cheapest route that could cover it and compared, sample by sample, with
plain autograd on batches of one. A route that disagrees is not used: a layer that is fed something other than the batch moves
on to the next route by itself. Two things a comparison cannot see are looked for: a weight that is also applied by a
functional call, whose contribution may happen to be zero, and a parameter whose gradient is zero on all of the samples.
"""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, CoverageError
from ntkpipe.workers.jacobians.capture import Capture
from ntkpipe.workers.jacobians.fallback import looped_gradients, vectorised_gradients
from ntkpipe.workers.jacobians.layers import has_rule
from ntkpipe.workers.jacobians.routes import ParameterRoute, Route

NUM_PROBES = 4
"""Samples on which routes are proved."""

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-8}
"""Largest relative difference of a gradient from plain autograd; rounding stays far below, a wrong rule far above."""

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
        model: The model, on the device and in the precision of the run.
        names: From :func:`select_parameters`.
        inputs: From :func:`probe_samples`.

    Raises:
        CoverageError: A sample's output depends on the other samples of its batch, or a parameter has no route whose
            gradients agree with plain autograd; the parameter is named.
    """
    check_modules(model)
    finite_B = torch.isfinite(Capture(model, frozenset(), inputs).outputs_BC).all(dim=1)
    if not finite_B.any():
        raise CoverageError("the model's outputs are NaN or infinite; check its weights and its inputs.")
    # Samples that overflow are reported by name when their turn comes; they cannot prove anything.
    inputs = inputs[finite_B]
    together, again = (Capture(model, frozenset(), inputs).outputs_BC.detach() for _ in range(2))
    alone = torch.cat([Capture(model, frozenset(), inputs[i : i + 1]).outputs_BC.detach() for i in range(len(inputs))])
    if not torch.equal(together, again):
        raise CoverageError("the model gives different outputs for the same samples; it must be deterministic.")
    if not _agree(together, alone):
        raise CoverageError(
            "the outputs of a sample change with the other samples of its batch; a row of the Jacobian is undefined. "
            "Look for normalisation over the batch, or a reshape that mixes samples."
        )
    generator = torch.Generator().manual_seed(0)
    cotangents_VBC = torch.randn(2, *together.shape, generator=generator, dtype=torch.float64).to(together)
    truth = looped_gradients(model, names, inputs, cotangents_VBC)
    # A gradient that is zero but for rounding, such as an attention key's bias, has no largest entry to compare with.
    noise = NOISE[together.dtype] * max(float(value.abs().amax()) for value in truth.values())
    routes: dict[str, Route] = {}
    for route in ("captured", "vmap", "loop"):
        missing = [name for name in names if name not in routes]
        for name, gradients in _attempt(route, model, missing, inputs, cotangents_VBC).items():
            # Agreeing on zero proves nothing about rules for layers; torch.func differentiates the model itself.
            proved = route != "captured" or bool(truth[name].any())
            if proved and _agree(gradients, truth[name], noise):
                routes[name] = route
    for name in names:
        if name not in routes:
            raise CoverageError(
                f"parameter {name!r} has no route to its per-sample gradients that agrees with autograd: the model is "
                "not deterministic, or its backward pass depends on the batch."
            )
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return tuple(ParameterRoute(name, shapes[name], routes[name]) for name in names)


def probe_samples(inputs: torch.Tensor) -> torch.Tensor:
    """Return up to ``NUM_PROBES`` different samples, spread over the ones given."""
    positions = torch.linspace(0, len(inputs) - 1, min(len(inputs), 4 * NUM_PROBES)).round().long()
    chosen: list[torch.Tensor] = []
    for sample in inputs[positions]:
        if len(chosen) < NUM_PROBES and not any(torch.equal(sample, other) for other in chosen):
            chosen.append(sample)
    return torch.stack(chosen)


def recorded_modules(model: nn.Module, names: Collection[str]) -> frozenset[nn.Module]:
    """Return the recordable modules that own one of the named parameters."""
    wanted = {parameter for name, parameter in model.named_parameters() if name in names}
    return frozenset(
        module
        for module in model.modules()
        if has_rule(module) and any(parameter in wanted for parameter in module.parameters(recurse=False))
    )


def _attempt(
    route: Route, model: nn.Module, names: list[str], inputs: torch.Tensor, cotangents_VBC: torch.Tensor
) -> dict[str, torch.Tensor]:
    if not names:
        return {}
    if route == "loop":
        return looped_gradients(model, names, inputs, cotangents_VBC)
    if route == "vmap":
        try:
            return vectorised_gradients(model, names, inputs, cotangents_VBC)
        except RuntimeError:
            # No batching rule for something in the model; the coverage report says that the slower route is taken.
            return {}
    modules = recorded_modules(model, names)
    modules -= Capture(model, modules, inputs).misaligned()
    capture = Capture(model, modules, inputs)
    calls, uses = capture.num_calls(), capture.num_uses()
    by_parameter = {
        parameter: name
        for name, parameter in model.named_parameters()
        if name in names and uses[parameter] == calls[parameter]
    }
    factors = capture.factors(by_parameter, capture.deltas(cotangents_VBC))
    return {name: factor.dense() for name, factor in factors.items()}


def _agree(found: torch.Tensor, expected: torch.Tensor, noise: float = 0.0) -> bool:
    """Compare within a fraction of the largest expected entry, or within ``noise``."""
    if found.shape != expected.shape:
        return False
    if not torch.isfinite(expected).all():
        # The gradient itself overflows or is undefined here; the run reports it with the sample's name.
        return True
    difference = float((found - expected).abs().amax())
    return difference <= max(TOLERANCE[found.dtype] * float(expected.abs().amax()), noise)
