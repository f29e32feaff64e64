"""The kernels of a run on a worker: what each of them looks at, and which of them share work."""

from collections.abc import Hashable
from typing import final

import torch

from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.union import KernelConfig
from ntkpipe.storage.features import SampleReader
from ntkpipe.workers.jacobians.engine import Portion, portions
from ntkpipe.workers.jacobians.routes import ParameterRoute
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.registry import make_closed_form
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.kernels.preconditioning import gradient_scales
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.registry import make_random_features
from ntkpipe.workers.kernels.views import View
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.registry import make_projection
from ntkpipe.workers.sources.files import file_digests
from ntkpipe.workers.sources.model import load_tensors
from ntkpipe.workers.sources.tensors import tensors_digest
from ntkpipe.workers.tasks import WorkerSpec


@final
class RunKernels:
    """Makes what kernels need, each once: scales, projections, formulas and maps.

    Args:
        spec: Of the worker.
        samples: Reads stored second moments.
        device: Of the computation.
        dtype: Of gradients.
    """

    def __init__(self, spec: WorkerSpec, samples: SampleReader, device: torch.device, dtype: torch.dtype) -> None:
        self._spec = spec
        self._samples = samples
        self._device = device
        self._dtype = dtype
        self._projections: dict[str, AbstractProjection] = {}
        self._closed_forms: dict[str, AbstractClosedForm] = {}
        self._random_features: dict[str, AbstractRandomFeatures] = {}
        self._scales: dict[tuple[str, str], dict[str, torch.Tensor]] = {}

    def view(self, kernel: EmpiricalKernel, member: str) -> View:
        """Return what a kernel looks at, under one member of the model."""
        shape = self._spec.geometry.kernel(kernel.label)
        definition = kernel_definition(kernel.kind)
        scales = self._gradient_scales(kernel, member) if kernel.precondition is not None else None
        modules = self._spec.modules.get(kernel.label, ())
        return View(definition, shape.modules, modules, scales, scales_of=kernel.label if scales is not None else "")

    def _gradient_scales(self, kernel: EmpiricalKernel, member: str) -> dict[str, torch.Tensor]:
        key, config = (kernel.label, member), kernel.precondition
        assert config is not None
        if key not in self._scales:
            if config.kind == "adam":
                assert config.moments is not None
                stored = load_tensors(config.moments)
                moments = {name: stored[name] for name in self.weights(kernel)}
                self._check_file(f"moments.{kernel.label}", tensors_digest(moments))
            else:
                position = self._spec.geometry.kernel(kernel.label).members.index(member) if member else None
                stored_P = torch.from_numpy(self._samples.moments(kernel.label, member=position).copy())
                moments = self._by_parameter(kernel, stored_P)
            scales = gradient_scales(moments, exponent=config.exponent, eps=config.eps)
            self._scales[key] = {
                name: scales[name].to(device=self._device, dtype=self._dtype) for name in self.weights(kernel)
            }
        return self._scales[key]

    def _by_parameter(self, kernel: EmpiricalKernel, stored_P: torch.Tensor) -> dict[str, torch.Tensor]:
        routes = {route.name: route for route in self._routes}
        names = list(self.weights(kernel))
        parts = stored_P.split([routes[name].numel for name in names])
        return {name: part.view(routes[name].shape) for name, part in zip(names, parts, strict=True)}

    @property
    def _members(self) -> tuple[str, ...]:
        model = self._spec.config.model
        return () if model is None else model.member_names

    @property
    def _routes(self) -> tuple[ParameterRoute, ...]:
        """Those of any member: names and shapes are the same for all."""
        return next(iter(self._spec.routes.values()))

    def weights(self, kernel: EmpiricalKernel) -> dict[str, float]:
        """Return the weights of the parameters (or calls of modules) that a kernel is made of."""
        shape = self._spec.geometry.kernel(kernel.label)
        if shape.weights:
            return shape.weights
        names = shape.modules or [route.name for route in self._routes]
        return dict.fromkeys(names, 1.0)

    def is_restricted(self, kernel: EmpiricalKernel) -> bool:
        """Whether a kernel is not simply the sum over everything it looks at."""
        return bool(self._spec.geometry.kernel(kernel.label).weights)

    def seen_by(self, member: str) -> list[EmpiricalKernel]:
        """Return the kernels that look at a member of the model."""
        kernels = self._spec.config.model_kernels
        return [kernel for kernel in kernels if kernel.cross is None or member in kernel.cross]

    def closed_form(self, label: str) -> AbstractClosedForm:
        """Return the formula of a kernel that is one."""
        if label not in self._closed_forms:
            self._closed_forms[label] = make_closed_form(self._kernel_section(label))
        return self._closed_forms[label]

    def random_features(self, label: str) -> AbstractRandomFeatures:
        """Return the map of a kernel of random features."""
        if label not in self._random_features:
            self._random_features[label] = make_random_features(self._kernel_section(label))
        return self._random_features[label]

    def projection(self, kernel: EmpiricalKernel) -> AbstractProjection | None:
        """Return a kernel's random map, None if it is exact; kernels with equal settings share one."""
        config = self._spec.config.projection_of(kernel)
        if config.resolved_kind == "none":
            return None
        key = config.model_dump_json()
        if key not in self._projections:
            self._projections[key] = make_projection(config)
        return self._projections[key]

    def features_key(self, kernel: EmpiricalKernel, member: str) -> Hashable:
        """Return what is equal for kernels with the same features, which differ in their normalisation at the most."""
        weights = tuple(self.weights(kernel).items()) if self.is_restricted(kernel) else None
        return (self.view(kernel, member).key, self.projection(kernel), weights, kernel.layerwise)

    def with_equal_features(self) -> list[list[EmpiricalKernel]]:
        """Return the kernels that are products of stored features, in groups that share them."""
        groups: dict[object, list[EmpiricalKernel]] = {}
        for kernel in self._spec.config.model_kernels:
            if not self.is_exact(kernel):
                members = self._spec.geometry.kernel(kernel.label).members
                key = (self.features_key(kernel, members[0] if members else ""), members, kernel.cross)
                groups.setdefault(key, []).append(kernel)
        return list(groups.values())

    def is_exact(self, kernel: EmpiricalKernel) -> bool:
        """Whether a kernel is computed from products of factors, not from features."""
        return not kernel_definition(kernel.kind).is_own_feature and self.projection(kernel) is None

    def exact(self, members: tuple[str, str]) -> list[EmpiricalKernel]:
        """Return the exact kernels whose rows and columns are seen by the given members."""
        exact = [kernel for kernel in self._spec.config.model_kernels if self.is_exact(kernel)]
        if members[0] == members[1]:
            return [kernel for kernel in exact if kernel.cross is None]
        return [kernel for kernel in exact if kernel.cross == members]

    def exact_members(self) -> list[tuple[str, str]]:
        """Return the pairs of members that exact kernels are seen by."""
        crosses = [kernel.cross for kernel in self._spec.config.model_kernels if kernel.cross is not None]
        pairs = [*((member, member) for member in self._members), *dict.fromkeys(crosses)]
        return [pair for pair in pairs if self.exact(pair)]

    def portions(self, kernels: list[EmpiricalKernel]) -> list[Portion]:
        """Return the passes over a batch that some kernels need."""
        definitions = [kernel_definition(kernel.kind) for kernel in kernels]
        functionals = {definition.functional for definition in definitions if definition.functional is not None}
        named = [module for kernel in kernels for module in self._spec.modules.get(kernel.label, ())]
        modules = tuple(dict.fromkeys(named))
        num_outputs, max_vectors = self._spec.geometry.num_outputs, self._spec.passes.max_vectors
        return portions(functionals, num_outputs, max_vectors, modules)

    def _check_file(self, name: str, found: str) -> None:
        """Refuse a file that has changed since the run was planned.

        Raises:
            RunMismatchError: It has.
        """
        if self._spec.fingerprints[name] != found:
            field, _, kernel = name.partition(".")
            raise RunMismatchError(
                f"the file named by {field} of kernel {kernel!r} has changed since the run was planned. Restore it, or start "
                "a new run."
            )

    def _kernel_section(self, label: str) -> KernelConfig:
        """Return a kernel's section, after its files were compared with those the run was planned with."""
        section = self._spec.config.kernel(label)
        for name, found in file_digests(section).items():
            self._check_file(name, found)
        return section
