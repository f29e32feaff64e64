"""How much work, how many bytes and how many requests a task is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, final

from ntkpipe.configs.kernels.names import CLOSED_FORMS, RANDOM_FEATURES
from ntkpipe.configs.solve.union import SolveConfig
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.storage.grid import Block, num_chunks
from ntkpipe.storage.records import KernelGeometry
from ntkpipe.workers.kernels.formula_costs import formula_flops
from ntkpipe.workers.probing.solvers import run_problem
from ntkpipe.workers.run_operators import feature_rows
from ntkpipe.workers.solvers.prediction import Machine, Prediction, Problem, predict
from ntkpipe.workers.solvers.sharing import Rounds, rounds, shared_cost
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
from ntkpipe.workers.work import ModelWork, Work

ENTRY_BYTES: Final = 48.0
"""Moved in memory for a stored entry of a kernel beside its product: it is normalised, checked, copied and summed."""

EXTRA_REQUESTS: Final = 2
"""Of a task beside its chunks: a look at the driver's lock, and at a receipt."""

STATE_REQUESTS: Final = 3
"""Of a task of a shared solve beside that: names of states, the last one, and names of parts."""


@final
@dataclass(frozen=True, slots=True)
class Amount:
    """What a task is."""

    work: Work
    bytes_read: int = 0
    bytes_written: int = 0
    num_reads: int = 0
    num_writes: int = 0
    kept: Work = field(default_factory=Work)
    """The part of the work that is saved if the worker's last block had the same rows."""
    kept_bytes: int = 0
    """The part of what is read that belongs to the block's rows."""


@final
class Arithmetic:
    """Counts the tasks of one job, as they are on a CPU or on a GPU.

    Args:
        workload: The job.
        on_cpu: Where it runs.
        shares_solves: Whether several workers share the solves that can be shared.

    Attributes:
        passes: How batches are cut.
        memory: Predicted peak of a worker.
        rounds: By solution, how it is shared; none for solves that are one task.

    Raises:
        PlanError: A single sample does not fit the memory that the job allows a worker.
    """

    def __init__(self, workload: Workload, *, on_cpu: bool, shares_solves: bool = False) -> None:
        self._workload = workload
        self._config, self._geometry = workload.config, workload.geometry
        self._costs = workload.costs()
        self.passes, self.memory = workload.passes(int(workload.config.resources.max_worker_bytes), on_cpu=on_cpu)
        self._model: ModelWork = workload.work(self.passes, on_cpu=on_cpu)
        self._double = self._geometry.dtype == "float64"
        found = ((solve.name, _rounds(workload, solve)) for solve in self._config.solve if shares_solves)
        self.rounds: dict[str, Rounds] = {name: shared for name, shared in found if shared is not None}

    def of(self, task: Task) -> Amount:
        """Return what a task is."""
        match task:
            case FeaturesTask(shard=shard):
                return self._features(task, len(shard))
            case KernelTask(block=block):
                return self._kernel(task, block)
            case MomentsTask() | DeriveTask() | AnalysisTask() | FactorTask():
                return self._counted(task)
            case SolveTask(name=name):
                return self._solve(task, name)
            case SolvePartTask(name=name):
                return self._part(name, self.rounds[name])
            case SolveStepTask(name=name):
                return _step(self.rounds[name])

    def _features(self, task: Task, num: int) -> Amount:
        model, geometry = self._model, self._geometry
        work = model.sample.times(num)
        if model.passes is not None:
            work += model.batch.times(num_chunks(num, model.passes.batch_size))
        num_writes = max(1, len(geometry.members)) if geometry.num_outputs else 0
        for shape in geometry.kernels:
            if shape.derived is not None:
                continue
            times = max(1, len(shape.members))
            num_writes += times * (1 + (max(1, len(shape.groups)) if shape.feature_dim is not None else 0))
            if shape.kind in RANDOM_FEATURES:
                work += Work(double_flops=2.0 * num * self._workload.sample_size * (shape.feature_dim or 0))
        price = self._costs.price(task)
        return Amount(work, price.bytes_read, price.bytes_written, EXTRA_REQUESTS, num_writes)

    def _kernel(self, task: Task, block: Block) -> Amount:
        rows, columns = len(block.rows), len(block.columns)
        entries, price = float(rows * columns), self._costs.price(task)
        mirrored = block.rows.split == block.columns.split and not block.on_diagonal
        work, num_reads, num_writes = Work(), EXTRA_REQUESTS, 0
        shards = num_chunks(rows, self._geometry.shard_rows)
        shards += 0 if block.on_diagonal else num_chunks(columns, self._geometry.shard_rows)
        for shape, shares in self._costs.stored_kernels():
            times = matrices_of(shape) * (2 if mirrored and not shape.symmetric else 1)
            groups = max(1, len(shape.groups))
            num_chunks_written = times * (1 + len(shape.groups))
            num_writes += num_chunks_written
            work += Work(bytes=ENTRY_BYTES * entries * shape.width**2 * num_chunks_written)
            num_reads += times * shards if shape.cosine else 0
            if shape.feature_dim is not None and not shares:
                product = Work(flops=2 * entries * shape.feature_dim * groups * times)
                work += product.in_double() if self._double else product
                num_reads += times * groups * shards
            elif shape.kind in CLOSED_FORMS:
                each = formula_flops(self._config.kernel(shape.name), self._workload.sample_size)
                work += Work(double_flops=each * entries)
        exact, kept = self._exact(block)
        # Both sides are equally many bytes for each of their samples.
        kept_bytes = price.bytes_read * rows // (rows + (0 if block.on_diagonal else columns))
        return Amount(work + exact, price.bytes_read, price.bytes_written, num_reads, num_writes, kept, kept_bytes)

    def _exact(self, block: Block) -> tuple[Work, Work]:
        """Return the work of exact kernels, and the part of it that the last block with the same rows has done."""
        model, rows, columns = self._model, len(block.rows), len(block.columns)
        if model.passes is None or model.pair == Work():
            return Work(), Work()
        kept = self._factors(rows)
        if block.on_diagonal:
            return kept + model.pair.times(rows * (rows + 1) / 2), kept
        strips = num_chunks(rows, model.passes.row_samples)
        work = kept + self._factors(columns).times(strips) + model.pair.times(rows * columns)
        return work, kept if strips == 1 else Work()

    def _factors(self, num: int) -> Work:
        assert self._model.passes is not None
        batches = num_chunks(num, self._model.passes.batch_size)
        return self._model.factors.times(num) + self._model.factors_batch.times(batches)

    def _counted(self, task: Task) -> Amount:
        """Return a task whose price is all that is known of it; it is arithmetic in double precision."""
        price = self._costs.price(task)
        itemsize = 8 if self._double else 4
        chunk = itemsize * self._geometry.block_rows**2
        work = Work(double_flops=float(price.flops), bytes=2.0 * (price.bytes_read + price.bytes_written))
        if isinstance(task, MomentsTask):
            work = Work(flops=float(price.flops), bytes=2.0 * price.bytes_written)
        reads = EXTRA_REQUESTS + num_chunks(price.bytes_read, chunk)
        return Amount(work, price.bytes_read, price.bytes_written, reads, 1)

    def _solve(self, task: Task, name: str) -> Amount:
        """Return a solve that is one task, or what is left of it to the task that ends it."""
        price, solve = self._costs.price(task), self._section(name)
        work, bytes_read = solve_work(self._workload, solve), price.bytes_read
        if name in self.rounds:
            shared, of_rounds = shared_work(self._workload, solve)
            work, bytes_read = work + shared.times(-1), bytes_read - of_rounds
        num_reads = EXTRA_REQUESTS + num_chunks(bytes_read, self._chunk_bytes)
        return Amount(work, bytes_read, price.bytes_written, num_reads, 2 + len(self._geometry.splits))

    def _part(self, name: str, shared: Rounds) -> Amount:
        """Return one part of one round, which reads the last state beside its share of the matrix."""
        work, bytes_read = shared_work(self._workload, self._section(name))
        num = shared.num_steps * shared.num_parts
        own = bytes_read // num
        num_reads = EXTRA_REQUESTS + STATE_REQUESTS + num_chunks(own, self._chunk_bytes)
        return Amount(work.times(1 / num), shared.state_bytes + own, shared.part_bytes, num_reads, 1)

    @property
    def _chunk_bytes(self) -> int:
        return (8 if self._double else 4) * self._geometry.block_rows**2

    def _section(self, name: str) -> SolveConfig:
        return self._config.solve[self._geometry.solutions.index(name)]


def matrices_of(shape: KernelGeometry) -> int:
    """Return how many matrices a kernel has: one for each member, one for a cross kernel."""
    return 1 if shape.cross else max(1, len(shape.members))


def solve_work(workload: Workload, solve: SolveConfig) -> Work:
    """Return the work behind the predicted time of a solver."""
    return _work_behind(predict, workload, solve)


def shared_work(workload: Workload, solve: SolveConfig) -> tuple[Work, int]:
    """Return the part of it that belongs to the rounds of a shared solve, and what is read for that of the matrix."""
    problem = run_problem(solve, workload.geometry, workload.sample_size)
    machine = Machine(memory_bytes=float(workload.config.resources.max_worker_bytes))
    return _work_behind(shared_cost, workload, solve), round(shared_cost(solve, problem, machine).bytes_read)


def _step(shared: Rounds) -> Amount:
    """Return the end of a step: it looks for all parts, adds them up in their order and deletes them together."""
    num_reads = EXTRA_REQUESTS + STATE_REQUESTS + 2 + shared.num_parts
    bytes_read = shared.num_parts * shared.part_bytes + shared.state_bytes
    # What is added up passes through memory twice.
    work = Work(bytes=2.0 * shared.num_parts * shared.part_bytes)
    return Amount(work, bytes_read, shared.state_bytes, num_reads, 3)


def _rounds(workload: Workload, solve: SolveConfig) -> Rounds | None:
    geometry, problem = workload.geometry, run_problem(solve, workload.geometry, workload.sample_size)
    kernel, _ = geometry.matrix(solve.kernel)
    of_features = solve.needs == "features" or not (problem.tiles or problem.entry_flops)
    return rounds(
        solve, problem, feature_rows(geometry.shard_rows) if of_features else geometry.block_rows * kernel.width
    )


def _work_behind(
    count: Callable[[SolveConfig, Problem, Machine], Prediction], workload: Workload, solve: SolveConfig
) -> Work:
    """Return the work behind a predicted time: what it takes where all but one speed is infinite."""
    problem = run_problem(solve, workload.geometry, workload.sample_size)
    memory, fast = float(workload.config.resources.max_worker_bytes), float("inf")

    def amount(single: float = fast, double: float = fast, memory_speed: float = fast) -> float:
        machine = Machine(memory, single, double, storage_bytes=fast, memory_speed=memory_speed)
        return count(solve, problem, machine).seconds

    return Work(flops=amount(single=1.0), double_flops=amount(double=1.0), bytes=amount(memory_speed=1.0))
