"""What tasks cost in floating point operations and bytes.

Counts follow the algorithms, not measurements: a data-only backward pass costs about one forward pass, a materialised
weight gradient another one, a Gram block 2 N M K. Projections are priced by materialised gradients, exact Jacobian
blocks by products of them; where transforms or position pairs are cheaper they are taken instead, so that the price is
an upper bound.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from ntkpipe.configs.analyses import (
    FidelityAnalysis,
    HeatmapAnalysis,
    NeighborsAnalysis,
    SpectrumAnalysis,
    StudentTAnalysis,
)
from ntkpipe.configs.kernels.empirical import ACTIVATIONS, EmpiricalKernel, parse_kind
from ntkpipe.configs.run import RunConfig
from ntkpipe.storage.grid import Block, Shard, num_chunks
from ntkpipe.storage.records import Geometry, KernelGeometry
from ntkpipe.workers.kernels.formula_costs import formula_flops
from ntkpipe.workers.probing.solvers import run_problem
from ntkpipe.workers.solvers.prediction import Machine, predict
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


@dataclass(frozen=True, slots=True)
class Cost:
    """A price."""

    flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Add two prices."""
        return Cost(
            self.flops + other.flops, self.bytes_read + other.bytes_read, self.bytes_written + other.bytes_written
        )

    def times(self, num: int) -> "Cost":
        """Return the price of so many."""
        return Cost(self.flops * num, self.bytes_read * num, self.bytes_written * num)


@final
class CostModel:
    """Prices the tasks of one run."""

    def __init__(
        self, config: RunConfig, geometry: Geometry, *, num_parameters: int, forward_flops: int, sample_size: int
    ) -> None:
        self._config = config
        self._geometry = geometry
        self._num_parameters = num_parameters
        self._forward_flops = forward_flops
        self._sample_size = sample_size
        self._itemsize = 4 if geometry.dtype == "float32" else 8

    def price(self, task: Task) -> Cost:
        """Return the cost of one task."""
        match task:
            case MomentsTask():
                return self._moments(task.kernel)
            case FeaturesTask():
                return self._features(len(task.shard))
            case KernelTask():
                return self._kernel(task.block)
            case DeriveTask():
                return self._derive(task.kernel, len(task.rows))
            case FactorTask():
                return self._factor(task)
            case SolveTask():
                return self._solve(task.name)
            case SolveStepTask() | SolvePartTask():
                return Cost()  # a share of a solve, which is priced as a whole
            case AnalysisTask():
                return self._analysis(task.name)

    def _vectors(self, kernel: EmpiricalKernel) -> int:
        """Return V, the output vectors of a kernel."""
        name, number = parse_kind(kernel.kind)
        if name in ("trntk0", "trntk", "full"):
            return self._geometry.num_outputs
        if name in ACTIVATIONS:
            return 0
        return min(number, self._geometry.num_outputs) if name == "probe" else 1

    def stored_kernels(self) -> Iterator[tuple[KernelGeometry, bool]]:
        """Yield the kernels whose matrices are stored, and whether one before has the same features."""
        seen: set[tuple[object, ...]] = set()
        model_kernels = {kernel.label: kernel for kernel in self._config.model_kernels}
        for shape in self._geometry.kernels:
            if shape.derived is not None:
                continue
            key: tuple[object, ...] = (shape.name,)
            if shape.name in model_kernels and shape.feature_dim is not None:
                key = self._features_key(model_kernels[shape.name], shape)
            yield shape, key in seen
            seen.add(key)

    def _features_key(self, kernel: EmpiricalKernel, shape: KernelGeometry) -> tuple[object, ...]:
        """Return what is equal for kernels that differ in their normalisation at the most."""
        name, number = parse_kind(kernel.kind)
        same = {"trntk": "trntk0"}.get(name, name)
        parts = (shape.groups, shape.members, shape.cross, tuple(shape.weights.items()))
        own = kernel.label if kernel.precondition is not None else ""
        return (same, number, *parts, own, self._config.projection_of(kernel).model_dump_json())

    @property
    def _num_members(self) -> int:
        return max(1, len(self._geometry.members))

    def _moments(self, name: str) -> Cost:
        kernel = next(kernel for kernel in self._config.model_kernels if kernel.label == name)
        assert kernel.precondition is not None
        num = min(kernel.precondition.samples, self._geometry.splits[self._geometry.train_split].num_samples)
        size = self._geometry.kernel(name).num_moments
        return Cost(self._num_members * num * (2 * self._forward_flops + 2 * size), 0, self._num_members * 8 * size)

    def _features(self, num_samples: int) -> Cost:
        flops = self._forward_flops
        if self._config.model_kernels:
            flops *= 1 + max(self._vectors(kernel) for kernel in self._config.model_kernels)
        numbers = self._geometry.num_outputs
        for kernel in self._config.model_kernels:
            projection = self._config.projection_of(kernel)
            if projection.resolved_kind != "none":
                per_entry = {"rademacher": 2 * projection.resolved_dim, "gaussian": 2 * projection.resolved_dim}
                additions = self._num_parameters * per_entry.get(projection.resolved_kind, 2 * projection.nonzeros)
                flops += self._vectors(kernel) * (self._forward_flops + additions)
        for shape in self._geometry.kernels:
            if shape.derived is None:
                numbers += shape.width + (shape.feature_dim or 0) * max(1, len(shape.groups))
        # A run with members does all of it for every member; formulas, which do not, cost little beside it.
        return Cost(
            flops * num_samples * self._num_members, 0, numbers * num_samples * self._itemsize * self._num_members
        )

    def _kernel(self, block: Block) -> Cost:
        entries = len(block.rows) * len(block.columns)
        samples = len(block.rows) + (0 if block.on_diagonal else len(block.columns))
        rows_read = self._rows_read(block.rows) + (0 if block.on_diagonal else self._rows_read(block.columns))
        mirrored = block.rows.split == block.columns.split and not block.on_diagonal
        total, captured = Cost(), 0
        vectors = {kernel.label: self._vectors(kernel) for kernel in self._config.model_kernels}
        for shape, shares in self.stored_kernels():
            num_groups = max(1, len(shape.groups))
            times = (1 if shape.cross else max(1, len(shape.members))) * (2 if mirrored and not shape.symmetric else 1)
            written = entries * shape.width**2 * (1 + len(shape.groups)) * self._itemsize
            if shape.feature_dim is not None and shares:
                cost = Cost(0, 0, written)
            elif shape.feature_dim is not None:
                width = shape.feature_dim * num_groups
                cost = Cost(2 * entries * width, rows_read * width * self._itemsize, written)
            elif shape.name in vectors:
                captured = max(captured, vectors[shape.name] + 1)
                width = vectors[shape.name] * shape.width * self._num_parameters
                cost = Cost(2 * entries * width, 0, written)
            else:
                flops = round(entries * formula_flops(self._config.kernel(shape.name), self._sample_size))
                cost = Cost(flops, 0, written)
            total += Cost(cost.flops * times, cost.bytes_read * times, cost.bytes_written * times)
        return total + Cost(samples * self._forward_flops * captured * self._num_members)

    def _rows_read(self, side: Shard) -> int:
        """Return how many rows of features are read for a side of a block: chunks are read whole."""
        step, num = self._geometry.shard_rows, max(side.stop, self._geometry.splits[side.split].num_samples)
        return min(num_chunks(side.stop, step) * step, num) - side.start // step * step

    def _derive(self, name: str, num_rows: int) -> Cost:
        shape = self._geometry.kernel(name)
        num = self._geometry.splits[self._geometry.train_split].num_samples
        size = shape.statistic_dim or 0
        flops = num_rows * num if size == 1 else num_rows * size**2
        return Cost(flops, num_rows * num * self._itemsize, 8 * num_rows * size)

    def _factor(self, task: FactorTask) -> Cost:
        factor = self._geometry.factor(task.name)
        tile, itemsize = factor.tile_rows**2, 4 if factor.dtype == "float32" else 8
        flops = (2 * task.column + 1) * tile * factor.tile_rows
        num_read = (1 if task.row == task.column else 2) * task.column
        return Cost(flops, tile * (num_read * itemsize + self._itemsize), tile * itemsize)

    def _solve(self, name: str) -> Cost:
        index = self._geometry.solutions.index(name)
        solve, num_targets = self._config.solve[index], self._geometry.solution_targets[index]
        train = self._geometry.train_split
        num = self._geometry.splits[train].num_samples
        predicted = {split: self._geometry.splits[split].num_samples for split in self._geometry.predicted_splits(name)}
        # What is predicted for the training samples comes with the certificate.
        others = {split: rows for split, rows in predicted.items() if split != train}
        predicting = Cost(
            sum(2 * rows * num * num_targets for rows in others.values()),
            sum(self._between(solve.kernel, split, rows, num) for split, rows in others.items()),
            8 * num_targets * (num + sum(predicted.values())),
        )
        machine = Machine(memory_bytes=float(self._config.resources.max_worker_bytes))
        found = predict(solve, run_problem(solve, self._geometry, self._sample_size), machine)
        return predicting + Cost(round(found.flops), round(found.bytes_read))

    def _between(self, reference: str, split: str, rows: int, columns: int) -> int:
        """Return what is read of a kernel between a split and the training samples: its entries, or features of both."""
        if (split, self._geometry.train_split) in self._geometry.pairs:
            return rows * columns * self._itemsize
        kernel, _ = self._geometry.matrix(reference)
        if kernel.feature_dim is None:
            return 0
        return (rows + columns) * kernel.feature_dim * max(1, len(kernel.groups)) * self._itemsize

    def _analysis(self, name: str) -> Cost:
        analysis = next(item for item in self._config.analyses if item.name == name)
        num = self._geometry.splits[self._geometry.train_split].num_samples
        match analysis:
            case HeatmapAnalysis():
                return Cost(0, min(num, analysis.max_samples) ** 2 * self._itemsize)
            case SpectrumAnalysis():
                size = min(num, analysis.max_samples)
                kernels = len(analysis.kernels) or len(self._geometry.references)
                return Cost(9 * kernels * size**3, kernels * size**2 * self._itemsize)
            case NeighborsAnalysis():
                return Cost(0, num * analysis.samples * self._itemsize)
            case FidelityAnalysis():
                split = self._geometry.splits[analysis.split]
                return Cost(0, 8 * split.num_samples * sum(self._geometry.solution_targets))
            case StudentTAnalysis():
                size = min(num, analysis.max_samples)
                kernels = len(analysis.kernels) or len(self._geometry.references)
                entries = size * (size + self._geometry.splits[analysis.split].num_samples)
                return Cost(kernels * (size**3 // 3 + 2 * entries * size), kernels * entries * self._itemsize)
