"""What is found out about a run's model, under each of its members."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ntkpipe.configs.canonical import digest
from ntkpipe.configs.errors import ConfigError, NtkPipeError
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.sources import PythonModel
from ntkpipe.workers.jacobians.activations import called_modules, leaf_modules
from ntkpipe.workers.jacobians.coverage import in_double_precision, plan_routes, select_parameters
from ntkpipe.workers.jacobians.engine import BatchJacobian, JacobianEngine, Portion
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.jacobians.routes import ParameterRoute
from ntkpipe.workers.jacobians.truth import GradientCheck, check_gradient, require_passed
from ntkpipe.workers.kernels.parameters import parameter_weights
from ntkpipe.workers.kernels.preconditioning import check_moments, gradient_scales
from ntkpipe.workers.sources.model import load_model, load_tensors, weights_digest
from ntkpipe.workers.sources.tensors import tensors_digest

Routes = tuple[ParameterRoute, ...]


@dataclass(frozen=True, slots=True)
class ProbedModel:
    """A model that a run can work with."""

    routes: dict[str, Routes]
    """Of every differentiated parameter, by member."""
    weights_digests: dict[str, str]
    """By member."""
    gradient: GradientCheck
    """Whether the backward pass is the derivative of the forward pass; the worst member's."""
    engine: JacobianEngine
    """Over the first member."""
    first: BatchJacobian
    """Of one sample, differentiated with respect to the summed outputs."""
    forward_flops: int
    """Floating point operations of one sample's forward pass."""
    weights: dict[str, dict[str, float]]
    """By kernel, where it is not made of all differentiated parameters alike."""
    modules: dict[str, tuple[str, ...]]
    """By kernel of activations of modules: the calls whose outputs are multiplied."""
    watched: dict[str, tuple[str, ...]]
    """By kernel of activations of modules: all modules that would belong to it if the model called them."""
    moments_digests: dict[str, str]
    """By kernel with second moments from a file."""

    @property
    def any_routes(self) -> Routes:
        """Those of the first member; names and shapes are the same for all."""
        return next(iter(self.routes.values()))

    def parameters_of(self, kernel: EmpiricalKernel) -> list[ParameterRoute]:
        """Return the parameters that a kernel is made of."""
        wanted = self.weights.get(kernel.label)
        return [route for route in self.any_routes if wanted is None or route.name in wanted]

    def fingerprints(self) -> dict[str, str]:
        """Return digests of what must not change between a run and its resumption."""
        found = {}
        for member, routes in self.routes.items():
            suffix = f".{member}" if member else ""
            found[f"weights{suffix}"] = self.weights_digests[member]
            found[f"routes{suffix}"] = digest([[route.name, route.description] for route in routes])
        if not self.gradient.passed:
            found["gradient"] = "pseudo"
        return found | {f"moments.{label}": text for label, text in self.moments_digests.items()}


def probe_model(config: RunConfig, source: PythonModel, inputs: torch.Tensor, split: str) -> ProbedModel:
    """Load every member of a model on this machine's CPU, find and prove its routes.

    Args:
        config: Of the run.
        source: Its model.
        inputs: A few different samples.
        split: Where they are from, for messages.

    Raises:
        ConfigError: A member cannot be loaded, does not fit the samples, or has other parameters than the first one.
        CoverageError: It cannot be differentiated per sample, or its backward pass is not a derivative.
    """
    routes: dict[str, Routes] = {}
    digests: dict[str, str] = {}
    gradients: list[GradientCheck] = []
    engine, weights = None, {}
    for member in source.member_names:
        model = load_model(source.member(member))
        if engine is None:
            weights = _weights(config, model, inputs, split)
        names = _differentiated(config, model, weights)
        routes[member], gradient = _proved(model, names, inputs, split, refuse=source.pseudo_gradient == "refuse")
        gradients.append(gradient)
        digests[member] = weights_digest(model)
        engine = engine or JacobianEngine(model, routes[member])
        _check_same_parameters(source, member, routes)
    assert engine is not None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        engine.model(inputs[:1])
    found = ProbedModel(
        routes=routes,
        weights_digests=digests,
        gradient=max(gradients, key=lambda check: (not check.passed, check.error)),
        engine=engine,
        first=engine.run(inputs[:1], Portion(frozenset({Functional("sum")}))),
        forward_flops=int(counter.get_total_flops()),
        weights=weights,
        modules={
            kernel.label: called_modules(engine.model, kernel.modules, inputs)
            for kernel in config.model_kernels
            if kernel.kind == "em"
        },
        watched={
            kernel.label: tuple(leaf_modules(engine.model, kernel.modules))
            for kernel in config.model_kernels
            if kernel.kind == "em"
        },
        moments_digests={},
    )
    found.moments_digests.update(_moments_digests(config, found))
    return found


def _weights(config: RunConfig, model: nn.Module, inputs: torch.Tensor, split: str) -> dict[str, dict[str, float]]:
    """Return the weights of parameters by kernel, for those that choose some."""
    found = {}
    for kernel in config.model_kernels:
        if kernel.parameters is not None:
            try:
                found[kernel.label] = parameter_weights(model, kernel.parameters, inputs)
            except ConfigError as error:
                raise ConfigError(f"kernel {kernel.label!r}: {error.message}") from None
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise _misfit(inputs, split, error) from None
    return found


def _differentiated(config: RunConfig, model: nn.Module, weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the parameters that some kernel is made of, in the model's order."""
    names = select_parameters(model)
    choosing = [kernel.label in weights for kernel in config.model_kernels if kernel.kind not in ("ck", "em", "nngp")]
    if not choosing or not all(choosing):
        return names
    wanted = {name for chosen in weights.values() for name in chosen}
    return [name for name in names if name in wanted]


def _proved(
    model: nn.Module, names: list[str], inputs: torch.Tensor, split: str, *, refuse: bool
) -> tuple[Routes, GradientCheck]:
    try:
        precise, samples = in_double_precision(model, inputs)
        routes = plan_routes(precise, names, samples)
        gradient = check_gradient(precise, names, samples)
        if refuse:
            require_passed(gradient)
    except NtkPipeError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise _misfit(inputs, split, error) from None
    return routes, gradient


def _misfit(inputs: torch.Tensor, split: str, error: Exception) -> ConfigError:
    shape = tuple(inputs.shape[1:])
    return ConfigError(f"the model cannot process samples of shape {shape} from split {split!r}: {error}")


def _check_same_parameters(source: PythonModel, member: str, routes: Mapping[str, Routes]) -> None:
    first = next(iter(routes.values()))
    expected, found = ({route.name: route.shape for route in each} for each in (first, routes[member]))
    if expected != found:
        other = next(name for name in {**expected, **found} if expected.get(name) != found.get(name))
        raise ConfigError(
            f"member {member!r} of the model differs from {source.member_names[0]!r} in parameter {other!r}: "
            f"{found.get(other)} instead of {expected.get(other)}. Members share one architecture; give another one a run of "
            "its own."
        )


def _moments_digests(config: RunConfig, model: ProbedModel) -> dict[str, str]:
    """Return digests of second moments from files, which must fit the parameters."""
    found = {}
    for kernel in config.model_kernels:
        given = kernel.precondition
        if given is None or given.kind != "adam":
            continue
        assert given.moments is not None
        moments = load_tensors(given.moments)
        wanted = model.parameters_of(kernel)
        check_moments(moments, wanted, f"kernel {kernel.label!r}, {given.moments}")
        gradient_scales({route.name: moments[route.name] for route in wanted}, exponent=given.exponent, eps=given.eps)
        found[kernel.label] = tensors_digest({route.name: moments[route.name] for route in wanted})
    return found
