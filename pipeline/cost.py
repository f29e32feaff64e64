"""What tasks cost in floating point operations and bytes.

Counts follow the algorithms, not measurements: a data-only backward pass costs about one forward pass, a materialised
weight gradient another one, a Gram block 2 N M K. Projections are priced by materialised gradients, exact Jacobian
blocks by products of them; where transforms or position pairs are cheaper they are taken instead, so that the price is
an upper bound.
"""

from dataclasses import dataclass
from typing import final

from ntkpipe.configs.analyses import FidelityAnalysis, HeatmapAnalysis, NeighborsAnalysis, SpectrumAnalysis
from ntkpipe.configs.kernels import KernelConfig, parse_kind
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.solve import CholeskySolve
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.tasks import AnalysisTask, FeaturesTask, KernelTask, SolveTask, Task


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


@final
class CostModel:
    """Prices the tasks of one run."""

    def __init__(self, config: RunConfig, geometry: Geometry, *, num_parameters: int, forward_flops: int) -> None:
        self._config = config
        self._geometry = geometry
        self._num_parameters = num_parameters
        self._forward_flops = forward_flops
        self._itemsize = 4 if geometry.dtype == "float32" else 8

    def price(self, task: Task) -> Cost:
        """Return the cost of one task."""
        match task:
            case FeaturesTask():
                return self._features(len(task.shard))
            case KernelTask():
                return self._kernel(len(task.block.rows), len(task.block.columns), task.block.on_diagonal)
            case SolveTask():
                return self._solve(task.name)
            case AnalysisTask():
                return self._analysis(task.name)

    def _vectors(self, kernel: KernelConfig) -> int:
        """Return V, the output vectors of a kernel."""
        name, number = parse_kind(kernel.kind)
        if name in ("trntk0", "trntk"):
            return self._geometry.num_outputs
        return {"ck": 0, "probe": min(number, self._geometry.num_outputs)}.get(name, 1)

    def _features(self, num_samples: int) -> Cost:
        kernels = self._config.kernels
        flops = self._forward_flops * (1 + max(self._vectors(kernel) for kernel in kernels))
        numbers = self._geometry.num_outputs
        for kernel in kernels:
            shape = self._geometry.kernel(kernel.label)
            projection = self._config.projection_of(kernel)
            if projection.resolved_kind != "none":
                per_entry = {"rademacher": 2 * projection.resolved_dim, "gaussian": 2 * projection.resolved_dim}
                additions = self._num_parameters * per_entry.get(projection.resolved_kind, 2 * projection.nonzeros)
                flops += self._vectors(kernel) * (self._forward_flops + additions)
            numbers += 1 + (shape.feature_dim or 0) * max(1, len(shape.groups))
        return Cost(flops * num_samples, 0, numbers * num_samples * self._itemsize)

    def _kernel(self, num_rows: int, num_columns: int, on_diagonal: bool) -> Cost:
        entries, samples = num_rows * num_columns, num_rows + (0 if on_diagonal else num_columns)
        total, captured = Cost(), 0
        for kernel in self._config.kernels:
            shape = self._geometry.kernel(kernel.label)
            num_groups = max(1, len(shape.groups))
            written = entries * (1 + len(shape.groups)) * self._itemsize
            if shape.feature_dim is not None:
                width = shape.feature_dim * num_groups
                total += Cost(2 * entries * width, samples * width * self._itemsize, written)
            else:
                captured = max(captured, self._vectors(kernel))
                total += Cost(2 * entries * self._vectors(kernel) * self._num_parameters, 0, written)
        return total + Cost(samples * self._forward_flops * (1 + captured) if captured else 0)

    def _solve(self, name: str) -> Cost:
        index = self._geometry.solutions.index(name)
        solve, num_targets = self._config.solve[index], self._geometry.solution_targets[index]
        train = self._geometry.train_split
        num = self._geometry.splits[train].num_samples
        rows = [self._geometry.splits[r].num_samples for r, c in self._geometry.pairs if c == train]
        predicting = Cost(
            sum(2 * m * num * num_targets for m in rows),
            sum(m * num * self._itemsize for m in rows),
            8 * num_targets * (num + sum(rows)),
        )
        if isinstance(solve, CholeskySolve):
            fitting = Cost(num**3 // 3 + 4 * num**2 * num_targets, num**2 * self._itemsize)
        else:
            per_epoch = 2 * num**2 * num_targets
            size = min(solve.subsample, num)
            fitting = Cost(solve.epochs * per_epoch + 9 * size**3, solve.epochs * 2 * num**2 * self._itemsize)
        return predicting + fitting

    def _analysis(self, name: str) -> Cost:
        analysis = next(item for item in self._config.analyses if item.name == name)
        num = self._geometry.splits[self._geometry.train_split].num_samples
        match analysis:
            case HeatmapAnalysis():
                return Cost(0, min(num, analysis.max_samples) ** 2 * self._itemsize)
            case SpectrumAnalysis():
                size = min(num, analysis.max_samples)
                kernels = len(analysis.kernels) or len(self._config.kernels)
                return Cost(9 * kernels * size**3, kernels * size**2 * self._itemsize)
            case NeighborsAnalysis():
                return Cost(0, num * analysis.samples * self._itemsize)
            case FidelityAnalysis():
                split = self._geometry.splits[analysis.split]
                return Cost(0, 8 * split.num_samples * sum(self._geometry.solution_targets))
