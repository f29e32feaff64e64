"""A plan: the stages of a run as inert data with a price tag. Enumerates tasks, starts nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from ntkpipe.configs.errors import PlanError
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.units import size
from ntkpipe.pipeline.cost import Cost, CostModel
from ntkpipe.storage.factor import FACTOR_PREFIX, factor_stages
from ntkpipe.storage.features import DERIVE_PREFIX, FEATURES_STAGE, MOMENTS_STAGE, derive_stage
from ntkpipe.storage.grid import Block, Shard, blocks, num_blocks, num_chunks, shard_at, shards
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.records import Geometry
from ntkpipe.storage.schema import stored_bytes
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.tasks import (
    ANALYZE_STAGE,
    AnalysisTask,
    DeriveTask,
    FactorTask,
    FeaturesTask,
    KernelTask,
    MomentsTask,
    SolveTask,
    Task,
)


def stages(geometry: Geometry) -> tuple[str, ...]:
    """Return the stages of a run in order; those that may overlap are in one of :attr:`Plan.waves`."""
    levels = sorted({kernel.level for kernel in geometry.kernels if kernel.statistic_dim is not None})
    moments = (MOMENTS_STAGE,) if any(kernel.num_moments for kernel in geometry.kernels) else ()
    derive = tuple(derive_stage(level) for level in levels)
    factors = factor_stages(max((factor.num_tiles for factor in geometry.factors), default=0))
    return (*moments, FEATURES_STAGE, KERNEL_STAGE, *derive, *factors, SOLVE_STAGE, ANALYZE_STAGE)


@dataclass(frozen=True, slots=True)
class StagePrice:
    """What a stage costs in total."""

    stage: str
    num_tasks: int
    cost: Cost


@final
class Plan:
    """All the work of a run, derived from its configuration and geometry."""

    def __init__(self, config: RunConfig, geometry: Geometry, cost_model: CostModel | None = None) -> None:
        self.config = config
        self.geometry = geometry
        self._cost_model = cost_model
        self.stages = stages(geometry)

    @property
    def waves(self) -> tuple[tuple[str, ...], ...]:
        """The stages in order, together those of which the second starts as soon as what its tasks need is there."""
        together = (FEATURES_STAGE, KERNEL_STAGE)
        others = [(stage,) for stage in self.stages if stage not in together]
        place = self.stages.index(FEATURES_STAGE)
        return (*others[:place], together, *others[place:])

    def num_tasks(self, stage: str) -> int:
        """Return how many tasks a stage has, without enumerating them."""
        geometry = self.geometry
        sizes = {name: split.num_samples for name, split in geometry.splits.items()}
        if stage == FEATURES_STAGE:
            return sum(num_chunks(size, geometry.shard_rows) for size in sizes.values())
        if stage == KERNEL_STAGE:
            return sum(num_blocks(r, sizes[r], c, sizes[c], geometry.block_rows) for r, c in geometry.pairs)
        if stage == SOLVE_STAGE:
            return len(self.config.solve)
        if stage == ANALYZE_STAGE:
            return len(self.config.analyses)
        return sum(num for _, num in self.shapes(stage))

    def tasks(self, stage: str) -> Iterator[Task]:
        """Yield the tasks of a stage, in the order in which they are best started."""
        geometry = self.geometry
        sizes = {name: split.num_samples for name, split in geometry.splits.items()}
        if stage == FEATURES_STAGE:
            for split, size in sizes.items():
                yield from (FeaturesTask(shard) for shard in shards(split, size, geometry.shard_rows))
        elif stage == KERNEL_STAGE:
            for row_split, column_split in geometry.pairs:
                found = blocks(row_split, sizes[row_split], column_split, sizes[column_split], geometry.block_rows)
                yield from (KernelTask(block) for block in found)
        elif stage == MOMENTS_STAGE:
            yield from (MomentsTask(kernel.name) for kernel in geometry.kernels if kernel.num_moments)
        elif stage.startswith(FACTOR_PREFIX):
            yield from self._factor_tasks(stage)
        elif stage.startswith(DERIVE_PREFIX):
            yield from self._derive_tasks(stage)
        elif stage == SOLVE_STAGE:
            yield from (SolveTask(solve.name) for solve in self.config.solve)
        else:
            yield from (AnalysisTask(analysis.name) for analysis in self.config.analyses)

    def _factor_tasks(self, stage: str) -> Iterator[Task]:
        for factor in self.geometry.factors:
            column = int(stage.removeprefix(FACTOR_PREFIX).partition("-")[0])
            for row in range(column, factor.num_tiles):
                task = FactorTask(factor.name, row, column)
                if task.stage == stage:
                    yield task

    def _derive_tasks(self, stage: str) -> Iterator[Task]:
        geometry = self.geometry
        for kernel in geometry.kernels:
            if kernel.statistic_dim is None or derive_stage(kernel.level) != stage:
                continue
            for split in geometry.paired_splits:
                size = geometry.splits[split].num_samples
                for rows in shards(split, size, geometry.block_rows):
                    yield DeriveTask(kernel.name, rows, kernel.level)

    def shapes(self, stage: str) -> Iterator[tuple[Task, int]]:
        """Yield one task of every size in a stage, and how many there are like it; O(1) whatever the number of samples."""
        geometry = self.geometry
        if stage == FEATURES_STAGE:
            for split in geometry.splits:
                yield from ((FeaturesTask(shard), num) for shard, num in self._sides(split, geometry.shard_rows))
        elif stage == KERNEL_STAGE:
            for pair in geometry.pairs:
                yield from ((KernelTask(block), num) for block, num in self._block_shapes(*pair))
        elif stage.startswith(DERIVE_PREFIX):
            for kernel in geometry.kernels:
                if kernel.statistic_dim is not None and derive_stage(kernel.level) == stage:
                    for split in geometry.paired_splits:
                        for rows, num in self._sides(split, geometry.block_rows):
                            yield DeriveTask(kernel.name, rows, kernel.level), num
        elif stage.startswith(FACTOR_PREFIX):
            column, _, kind = stage.removeprefix(FACTOR_PREFIX).partition("-")
            first = int(column) + (kind != "diagonal")
            for factor in geometry.factors:
                if first < factor.num_tiles:
                    num = 1 if kind == "diagonal" else factor.num_tiles - first
                    yield FactorTask(factor.name, first, int(column)), num
        else:
            yield from ((task, 1) for task in self.tasks(stage))

    def _sides(self, split: str, rows: int) -> Iterator[tuple[Shard, int]]:
        """Yield a whole shard and the one that the end of the split has cut off, and how many there are of each."""
        size = self.geometry.splits[split].num_samples
        if size >= rows:
            yield shard_at(split, 0, size, rows), size // rows
        if size % rows:
            yield shard_at(split, size // rows, size, rows), 1

    def _block_shapes(self, row_split: str, column_split: str) -> Iterator[tuple[Block, int]]:
        step = self.geometry.block_rows
        if row_split != column_split:
            for rows, num_rows in self._sides(row_split, step):
                for columns, num_columns in self._sides(column_split, step):
                    yield Block(rows, columns), num_rows * num_columns
            return
        size = self.geometry.splits[row_split].num_samples
        first = shard_at(row_split, 0, size, step)
        for rows, num in self._sides(row_split, step):
            yield Block(rows, rows), num
            # Of whole rows below the first one another; of what is cut off, one with all whole ones.
            below = num * (num - 1) // 2 if rows == first else size // step
            if below:
                yield Block(rows if rows != first else shard_at(row_split, 1, size, step), first), below

    def prices(self) -> list[StagePrice]:
        """Return the cost of every stage; needs a cost model. Takes no longer for more samples."""
        assert self._cost_model is not None
        found = []
        for stage in self.stages:
            total = Cost()
            for task, num in self.shapes(stage):
                total += self._cost_model.price(task).times(num)
            found.append(StagePrice(stage, self.num_tasks(stage), total))
        return found

    def price(self, task: Task) -> Cost:
        """Return the cost of a task; needs a cost model."""
        assert self._cost_model is not None
        return self._cost_model.price(task)

    def check_space(self, store: AbstractStore) -> None:
        """Refuse a plan whose chunks do not fit the store.

        Raises:
            PlanError: Says how much is needed and how much is free.
        """
        needed, free = stored_bytes(self.geometry), store.free_bytes()
        if free is not None and needed > free:
            sizes = ", ".join(f"{name}: {split.num_samples:,}" for name, split in self.geometry.splits.items())
            raise PlanError(
                f"{store.url}: the run needs {size(needed, at_least=True)} of storage and {size(free)} are free. It stores "
                f"{len(self.geometry.kernels)} kernels over samples ({sizes}). Free some space, choose another place "
                "with --out, use fewer samples or kernels, or store.dtype=float32."
            )
