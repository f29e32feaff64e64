"""What the bytes of a task are determined by, as digests: equal digests, equal chunks.

Digests are per kernel where a task serves several, so that a kernel that is added, removed or changed leaves those of
the others as they are. They hold what a kernel is, the samples that the task looks at and how they are cut; not the size
of the rest of a split, nor anything that says how a run is carried out or where its files are. Which kernels share a
pass over the model counts as the latter: like batch sizes it may change the last bit of a rounded sum.
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Final, final

from ntkpipe.configs.analyses import AnalysisConfig
from ntkpipe.configs.canonical import digest
from ntkpipe.configs.kernels.base import KernelSection
from ntkpipe.configs.kernels.derived import CentredConfig, DerivedConfig, PosteriorConfig, ScaledConfig
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.grid import Shard, num_chunks, shards
from ntkpipe.storage.records import NUMERICS_VERSION, KernelGeometry
from ntkpipe.workers.kernels.definitions import kernel_definition
from ntkpipe.workers.probing.models import ProbedModel
from ntkpipe.workers.probing.probe import Probe
from ntkpipe.workers.sources.data import SplitSource
from ntkpipe.workers.tasks import (
    AnalysisTask,
    DeriveTask,
    FactorTask,
    FeaturesTask,
    KernelTask,
    MomentsTask,
    SolvePartTask,
    SolveStepTask,
    SolveTask,
    Task,
)

NO_KERNEL: Final = ""
"""Key of what a task writes that belongs to no kernel: outputs, tiles of factors, solutions, analyses."""

INPUTS: Final = ":inputs"
"""Key of a features task's samples alone; no kernel is called like this."""

DIGITS = 32


def inputs_of(made_from: dict[str, str]) -> str | None:
    """Return the digest of the inputs of a features task's shard; None in runs of schema version 1."""
    return made_from.get(INPUTS)


@final
class TaskIdentities:
    """Digests of the tasks of a planned run. Memory is O(shards)."""

    def __init__(self, probe: Probe) -> None:
        self._config = probe.config
        self._geometry = probe.geometry
        self._probe = probe
        rows = probe.geometry.shard_rows
        self._labels = {name: _label_digests(source, rows) for name, source in probe.splits.items()}
        self._ranges: dict[tuple[str, int, int, bool], str] = {}
        self._kernels: dict[str, str] = {}
        self._sees_labels: dict[str, bool] = {}
        for kernel in probe.config.kernels:
            self._sees_labels[kernel.label] = self._looks_at_labels(kernel)
            self._kernels[kernel.label] = digest([NUMERICS_VERSION, probe.geometry.dtype, self._facts(kernel)])
        model = probe.model
        self._outputs = None if model is None else digest([NUMERICS_VERSION, probe.geometry.dtype, self._members()])

    def of(self, task: Task) -> dict[str, str]:
        """Return the digests of a task by kernel; :data:`NO_KERNEL` stands for what belongs to none."""
        match task:
            case FeaturesTask(shard=shard):
                return self._of_features(shard)
            case KernelTask(block=block):
                sides = [str(number) for side in (block.rows, block.columns) for number in (side.start, side.stop)]
                place = [str(self._geometry.block_rows), str(block.rows.split == block.columns.split), *sides]
                return {
                    label: _mix("block", self._kernels[label], *place, *self._both(block.rows, block.columns, label))
                    for label in self._stored
                }
            case MomentsTask(kernel=label):
                return {label: self._moments(self._config.kernel(label))}
            case DeriveTask(kernel=label, rows=rows):
                # Everything that a pass over rows reads of the training split is in the kernel's own digest.
                return {label: _mix("rows", self._kernels[label], str(rows.start), self._range(rows, label))}
            case FactorTask(name=name, row=row, column=column):
                return {NO_KERNEL: _mix("tile", self._factor(name), str(row), str(column))}
            case SolveTask(name=name):
                return {NO_KERNEL: self._solution(name)}
            case AnalysisTask(name=name):
                analysis = next(analysis for analysis in self._config.analyses if analysis.name == name)
                return {NO_KERNEL: self._analysis(analysis)}
            case SolveStepTask() | SolvePartTask():
                return {}  # they leave no receipt

    @property
    def _stored(self) -> list[str]:
        """The kernels whose matrices are stored."""
        return [kernel.name for kernel in self._geometry.kernels if kernel.derived is None]

    def _of_features(self, shard: Shard) -> dict[str, str]:
        place = (str(self._geometry.shard_rows), str(shard.start))
        found = {
            label: _mix(FEATURES_STAGE, self._kernels[label], *place, self._range(shard, label))
            for label in self._stored
        }
        inputs = self._probe.input_digests[shard.split][shard.index]
        if self._outputs is not None:
            found[NO_KERNEL] = _mix("outputs", self._outputs, *place, inputs)
        return found | {INPUTS: inputs}

    def _both(self, rows: Shard, columns: Shard, label: str) -> tuple[str, str]:
        return self._range(rows, label), self._range(columns, label)

    def _range(self, rows: Shard, label: str) -> str:
        return self._samples(rows.split, rows.start, rows.stop, labels=self._sees_labels[label])

    def _samples(self, split: str, start: int, stop: int, *, labels: bool) -> str:
        """Return a digest of the shards that a range of samples is in, as whole shards are computed together."""
        key = (split, start, stop, labels)
        if key not in self._ranges:
            rows = self._geometry.shard_rows
            touched = slice(start // rows, num_chunks(stop, rows))
            parts = list(self._probe.input_digests[split][touched])
            self._ranges[key] = _mix(str(rows), *parts, *(self._labels[split][touched] if labels else ()))
        return self._ranges[key]

    def _whole(self, split: str, *, labels: bool) -> str:
        return self._samples(split, 0, self._geometry.splits[split].num_samples, labels=labels)

    def _train(self, label: str) -> str:
        return self._whole(self._geometry.train_split, labels=self._sees_labels[label])

    def _looks_at_labels(self, kernel: KernelSection) -> bool:
        """Return whether a kernel between two samples depends on their labels."""
        if isinstance(kernel, DerivedConfig):
            return any(self._sees_labels[reference.partition("@")[0]] for reference in kernel.references)
        functional = kernel_definition(kernel.kind).functional if isinstance(kernel, EmpiricalKernel) else None
        return functional is not None and functional.needs_labels

    def _facts(self, kernel: KernelSection) -> list[Any]:
        """Return what a kernel is, apart from the samples that it is computed for."""
        section = {name: value for name, value in kernel.semantic().items() if name != "name"}
        shape = self._geometry.kernel(kernel.label)
        found: list[Any] = [section, _shape(shape)]
        if isinstance(kernel, EmpiricalKernel):
            section.pop("projection")
            found += [self._members(shape), self._routes(kernel, shape)]
            found.append(self._probe.fingerprints.get(f"projection.{kernel.label}"))
            if kernel.precondition is not None:
                is_fisher = kernel.precondition.kind == "fisher"
                moments = self._probe.fingerprints.get(f"moments.{kernel.label}")
                found.append(self._moments(kernel) if is_fisher else moments)
        elif isinstance(kernel, DerivedConfig):
            found.append([self._kernels[reference.partition("@")[0]] for reference in shape.parents])
            found.append(self._training_facts(kernel))
        else:
            files = {field: f"{field}.{kernel.label}" for field in sorted(kernel.runtime_fields)}
            found.append({field: self._probe.fingerprints.get(name) for field, name in files.items()})
        return found

    def _training_facts(self, kernel: DerivedConfig) -> list[Any]:
        """Return what a derived kernel between any two samples takes from the training split."""
        if isinstance(kernel, CentredConfig | PosteriorConfig) or (
            isinstance(kernel, ScaledConfig) and kernel.factor is None
        ):
            found: list[Any] = [self._train(kernel.label), self._geometry.block_rows]
            if isinstance(kernel, PosteriorConfig) and isinstance(kernel.given, tuple):
                places = {name: at for at, name in enumerate(self._probe.splits[self._geometry.train_split].ids)}
                found.append([places[name] for name in kernel.given])
            return found
        return []

    @property
    def _model(self) -> ProbedModel:
        assert self._probe.model is not None, "kernels of a model need one"
        return self._probe.model

    def _members(self, shape: KernelGeometry | None = None) -> list[Any]:
        """Return the model under each member that a kernel looks at, or under all of them."""
        config = self._config.model
        assert config is not None
        names = (shape.members if shape is not None else ()) or config.member_names
        unused = {"members", "pseudo_gradient"}
        return [
            [
                {field: value for field, value in config.member(name).semantic().items() if field not in unused},
                self._model.weights_digests[name],
            ]
            for name in names
        ]

    def _routes(self, kernel: EmpiricalKernel, shape: KernelGeometry) -> list[Any]:
        """Return how the gradients of a kernel's parameters are found, under each member."""
        if kernel_definition(kernel.kind).functional is None and kernel.precondition is None:
            return []
        names = {route.name for route in self._model.parameters_of(kernel)}
        return [
            [[route.name, route.description] for route in self._model.routes[member] if route.name in names]
            for member in shape.members or ("",)
        ]

    def _moments(self, kernel: KernelSection) -> str:
        """Return the digest of second moments that the run computes."""
        assert isinstance(kernel, EmpiricalKernel)
        assert kernel.precondition is not None
        shape = self._geometry.kernel(kernel.label)
        facts = [self._members(shape), self._routes(kernel, shape), list(shape.weights), kernel.precondition.samples]
        training = self._whole(self._geometry.train_split, labels=True)
        return _mix("moments", digest([NUMERICS_VERSION, facts]), training)

    def _matrix(self, reference: str, splits: Iterable[str]) -> list[Any]:
        """Return what a kernel matrix between the training split and others is made of."""
        name, _, member = reference.partition("@")
        geometry, labels = self._geometry, self._sees_labels[name]
        parts = {split: self._whole(split, labels=labels) for split in (geometry.train_split, *splits)}
        pairs = [pair for pair in geometry.pairs if set(pair) <= parts.keys()]
        return [self._kernels[name], member, list(parts.values()), pairs, geometry.block_rows]

    def _factor(self, name: str) -> str:
        solve = self._config.solve[self._geometry.solutions.index(name)]
        shape = self._geometry.factor(name).model_dump(mode="json", exclude={"name"})
        ridge = [solve.ridge, solve.ridge_scale]
        return digest([NUMERICS_VERSION, shape, ridge, self._matrix(solve.kernel, ())])

    def _solution(self, name: str) -> str:
        geometry = self._geometry
        position = geometry.solutions.index(name)
        solve, splits = self._config.solve[position], geometry.predicted_splits(name)
        # Lists, because documents keep the order in which a configuration names things.
        targets = [[split, self._targets(split)] for split in (geometry.train_split, *splits)]
        facts = [
            solve.semantic(),
            self._probe.solvers[name].why,
            geometry.solution_targets[position],
            self._matrix(solve.kernel, splits),
            targets,
        ]
        if any(factor.name == name for factor in geometry.factors):
            facts.append(self._factor(name))
        return digest([NUMERICS_VERSION, geometry.dtype, *facts])

    def _targets(self, split: str) -> list[Any]:
        """Return the labels of a split, and what they are."""
        shape = self._geometry.splits[split]
        return [shape.model_dump(mode="json"), _mix(*self._labels[split])]

    def _analysis(self, analysis: AnalysisConfig) -> str:
        """Return the digest of all that an analysis may read: its kernels, solutions and splits."""
        named = [*getattr(analysis, "kernels", ()), *([analysis.kernel] if hasattr(analysis, "kernel") else [])]
        if not named and hasattr(analysis, "kernels"):
            named = [
                name for name, traits in self._config.matrices.items() if traits.symmetric and not traits.per_output
            ]
        solutions: tuple[str, ...] = ()
        if hasattr(analysis, "solutions"):
            solutions = analysis.solutions or self._geometry.solutions
        splits = dict.fromkeys((self._geometry.train_split, getattr(analysis, "split", self._geometry.train_split)))
        samples = {
            split: [self._targets(split), self._whole(split, labels=True), digest(list(self._probe.splits[split].ids))]
            for split in splits
        }
        facts = [
            analysis.semantic(),
            [[name, self._matrix(name, splits)] for name in named],
            [[name, self._solution(name)] for name in solutions],
            samples,
            self._outputs if hasattr(analysis, "member") else None,
        ]
        return digest([NUMERICS_VERSION, *facts])


def _shape(kernel: KernelGeometry) -> dict[str, Any]:
    """Return the shape of a kernel without its name and without what says how it is made, which its section does."""
    return kernel.model_dump(mode="json", exclude={"name", "derived", "parents"})


def _label_digests(source: SplitSource, rows: int) -> tuple[str, ...]:
    """Return one digest of labels per shard."""
    if source.labels is None:
        return ()
    head = f"{source.labels.dtype}|{tuple(source.labels.shape[1:])}|".encode()
    return tuple(
        hashlib.sha256(head + source.labels[shard.start : shard.stop].contiguous().numpy().tobytes()).hexdigest()[
            :DIGITS
        ]
        for shard in shards(source.name, len(source), rows)
    )


def _mix(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:DIGITS]
