"""What a worker loads once and every task of a run uses."""

from collections.abc import Hashable, Iterator
from functools import cached_property
from typing import final

import torch

from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.configs.kernels.union import KernelConfig
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import SampleReader
from ntkpipe.storage.grid import Shard, shard_at
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.matrices import MatrixReader
from ntkpipe.storage.stores import open_store
from ntkpipe.workers.jacobians.engine import Factors, JacobianEngine, Portion, portions
from ntkpipe.workers.jacobians.routes import ParameterRoute
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.registry import make_closed_form
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.kernels.preconditioning import gradient_scales
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.registry import make_random_features
from ntkpipe.workers.kernels.views import View
from ntkpipe.workers.passes import CACHED_SHARDS
from ntkpipe.workers.projections.base import AbstractProjection
from ntkpipe.workers.projections.registry import make_projection
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.sources.files import file_digests
from ntkpipe.workers.sources.model import DTYPES, load_model, load_tensors, usable_device, weights_digest
from ntkpipe.workers.sources.tensors import tensors_digest
from ntkpipe.workers.tasks import WorkerSpec

BaseFactors = dict[Hashable, Factors]
"""Factors of a group of samples by what they are of, see :attr:`View.base_key`."""


@final
class WorkerContext:
    """Model, data, projections and storage of a run; each is loaded when a task first needs it.

    Attributes:
        spec: What the worker was started with.
        store: Where the run lives.
        chunks: Its arrays.
        ledger: Its receipts.
        samples: Reads what is stored per sample.
        matrices: Reads kernel matrices.
        kept_factors: Those of the last rows of an exact block, by what they are of; the kernel stage's own.
        kept_choleskys: The factor of the last posterior, by kernel; the derive stage's own.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.store = open_store(spec.url)
        self.chunks = ChunkStore(self.store)
        self.ledger = Ledger(self.store)
        self.samples = SampleReader(self.chunks, self.ledger, spec.geometry)
        self.matrices = MatrixReader(self.chunks, self.ledger, spec.geometry)
        self.kept_factors: tuple[object, list[BaseFactors]] | None = None
        self.kept_choleskys: dict[str, torch.Tensor] = {}
        self._splits: dict[str, SplitSource] = {}
        self._shards: dict[tuple[str, int], torch.Tensor] = {}
        self._projections: dict[str, AbstractProjection] = {}
        self._closed_forms: dict[str, AbstractClosedForm] = {}
        self._random_features: dict[str, AbstractRandomFeatures] = {}
        self._engines: dict[str, JacobianEngine] = {}
        self._scales: dict[tuple[str, str], dict[str, torch.Tensor]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the computation; of a run without a model, that of its storage."""
        model = self.spec.config.model
        return DTYPES[model.dtype if model is not None else self.spec.geometry.dtype]

    @cached_property
    def device(self) -> torch.device:
        """Where the computation happens; one that this machine has."""
        return usable_device(self.spec.config.resources.device)

    def engine(self, member: str) -> JacobianEngine:
        """Return the Jacobian engine over the run's model, or over one of its members."""
        if member not in self._engines:
            config = self.spec.config.model
            assert config is not None
            model = load_model(config.member(member))
            if weights_digest(model) != self.spec.weights_digests[member]:
                raise RunMismatchError(
                    f"{config.target} builds other weights in this process than the run was planned for. "
                    "Name a weights file in model.weights, or let the callable fix its seed."
                )
            self._engines[member] = JacobianEngine(model.to(self.device), self.spec.routes[member])
        return self._engines[member]

    @property
    def members(self) -> tuple[str, ...]:
        """The members of the model: one without a name for a model on its own, none without a model."""
        config = self.spec.config.model
        return () if config is None else config.member_names

    def view(self, kernel: EmpiricalKernel, member: str) -> View:
        """Return what a kernel looks at, under one member of the model."""
        shape = self.spec.geometry.kernel(kernel.label)
        definition = kernel_definition(kernel.kind)
        scales = self._gradient_scales(kernel, member) if kernel.precondition is not None else None
        modules = self.spec.modules.get(kernel.label, ())
        return View(definition, shape.modules, modules, scales, scales_of=kernel.label if scales is not None else "")

    def _gradient_scales(self, kernel: EmpiricalKernel, member: str) -> dict[str, torch.Tensor]:
        key, config = (kernel.label, member), kernel.precondition
        assert config is not None
        if key not in self._scales:
            if config.kind == "adam":
                assert config.moments is not None
                moments = {name: load_tensors(config.moments)[name] for name in self.weights(kernel)}
                self._check_file(f"moments.{kernel.label}", tensors_digest(moments))
            else:
                position = self.spec.geometry.kernel(kernel.label).members.index(member) if member else None
                stored_P = torch.from_numpy(self.samples.moments(kernel.label, member=position).copy())
                moments = self._by_parameter(kernel, stored_P)
            scales = gradient_scales(moments, exponent=config.exponent, eps=config.eps)
            self._scales[key] = {
                name: scales[name].to(device=self.device, dtype=self.dtype) for name in self.weights(kernel)
            }
        return self._scales[key]

    def _by_parameter(self, kernel: EmpiricalKernel, stored_P: torch.Tensor) -> dict[str, torch.Tensor]:
        routes = {route.name: route for route in self._routes}
        names = list(self.weights(kernel))
        parts = stored_P.split([routes[name].numel for name in names])
        return {name: part.view(routes[name].shape) for name, part in zip(names, parts, strict=True)}

    @property
    def _routes(self) -> tuple[ParameterRoute, ...]:
        """Those of any member: names and shapes are the same for all."""
        return next(iter(self.spec.routes.values()))

    def weights(self, kernel: EmpiricalKernel) -> dict[str, float]:
        """Return the weights of the parameters (or calls of modules) that a kernel is made of."""
        shape = self.spec.geometry.kernel(kernel.label)
        if shape.weights:
            return shape.weights
        names = shape.modules or [route.name for route in self._routes]
        return dict.fromkeys(names, 1.0)

    def is_restricted(self, kernel: EmpiricalKernel) -> bool:
        """Whether a kernel is not simply the sum over everything it looks at."""
        return bool(self.spec.geometry.kernel(kernel.label).weights)

    def kernels_of(self, member: str) -> list[EmpiricalKernel]:
        """Return the kernels that look at a member of the model."""
        kernels = self.spec.config.model_kernels
        return [kernel for kernel in kernels if kernel.cross is None or member in kernel.cross]

    def split(self, name: str) -> SplitSource:
        """Return the samples of a split."""
        if name not in self._splits:
            self._splits[name] = SplitSource(name, self.spec.config.data.splits[name])
        return self._splits[name]

    def inputs(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return the inputs of a range of samples, each shard checked against the digest the run was planned with."""
        rows, digests, parts = self.spec.geometry.shard_rows, self.spec.input_digests[name], []
        for index in range(start // rows, -(-stop // rows)):
            shard = shard_at(name, index, len(self.split(name)), rows)
            if (name, index) not in self._shards:
                while len(self._shards) >= CACHED_SHARDS:
                    self._shards.pop(next(iter(self._shards)))
                self._shards[name, index] = self.split(name).shard(shard, digests[index])
            inputs = self._shards[name, index]
            parts.append(inputs[max(start - shard.start, 0) : stop - shard.start])
        return torch.cat(parts)

    def _check_file(self, name: str, found: str) -> None:
        """Refuse a file that has changed since the run was planned.

        Raises:
            RunMismatchError: It has.
        """
        if self.spec.fingerprints[name] != found:
            field, _, kernel = name.partition(".")
            raise RunMismatchError(
                f"the file named by {field} of kernel {kernel!r} has changed since the run was planned. Restore it, or start "
                "a new run."
            )

    def _kernel_section(self, label: str) -> KernelConfig:
        """Return a kernel's section, after its files were compared with those the run was planned with."""
        section = self.spec.config.kernel(label)
        for name, found in file_digests(section).items():
            self._check_file(name, found)
        return section

    def plain_inputs(self, shard: Shard) -> torch.Tensor:
        """Return the inputs of a range of samples for kernels that are formulas, in double precision."""
        inputs = self.inputs(shard.split, shard.start, shard.stop).to(self.device)
        return inputs.double() if inputs.is_floating_point() else inputs

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
        config = self.spec.config.projection_of(kernel)
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

    def kernels_with_equal_features(self) -> list[list[EmpiricalKernel]]:
        """Return the kernels that are products of stored features, in groups that share them."""
        groups: dict[object, list[EmpiricalKernel]] = {}
        for kernel in self.spec.config.model_kernels:
            if not self.is_exact(kernel):
                members = self.spec.geometry.kernel(kernel.label).members
                key = (self.features_key(kernel, members[0] if members else ""), members, kernel.cross)
                groups.setdefault(key, []).append(kernel)
        return list(groups.values())

    def is_exact(self, kernel: EmpiricalKernel) -> bool:
        """Whether a kernel is computed from products of factors, not from features."""
        return not kernel_definition(kernel.kind).is_own_feature and self.projection(kernel) is None

    def exact_kernels(self, members: tuple[str, str]) -> list[EmpiricalKernel]:
        """Return the exact kernels whose rows and columns are seen by the given members."""
        exact = [kernel for kernel in self.spec.config.model_kernels if self.is_exact(kernel)]
        if members[0] == members[1]:
            return [kernel for kernel in exact if kernel.cross is None]
        return [kernel for kernel in exact if kernel.cross == members]

    def exact_members(self) -> list[tuple[str, str]]:
        """Return the pairs of members that exact kernels are seen by."""
        crosses = [kernel.cross for kernel in self.spec.config.model_kernels if kernel.cross is not None]
        pairs = [*((member, member) for member in self.members), *dict.fromkeys(crosses)]
        return [pair for pair in pairs if self.exact_kernels(pair)]

    def portions(self, kernels: list[EmpiricalKernel]) -> list[Portion]:
        """Return the passes over a batch that some kernels need."""
        definitions = [kernel_definition(kernel.kind) for kernel in kernels]
        functionals = {definition.functional for definition in definitions if definition.functional is not None}
        named = [module for kernel in kernels for module in self.spec.modules.get(kernel.label, ())]
        modules = tuple(dict.fromkeys(named))
        num_outputs, max_vectors = self.spec.geometry.num_outputs, self.spec.passes.max_vectors
        return portions(functionals, num_outputs, max_vectors, modules)

    def batches(self, shard: Shard) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield inputs and labels of a range of samples, batch by batch, on the device of the computation."""
        inputs, labels = self.inputs(shard.split, shard.start, shard.stop), self.split(shard.split).labels
        size = self.spec.passes.batch_size
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            first = shard.start + start
            yield (
                part.to(device=self.device, dtype=self.dtype if part.is_floating_point() else None),
                None if labels is None else labels[first : first + len(part)].to(self.device),
            )
