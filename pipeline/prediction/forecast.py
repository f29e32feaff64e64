"""What a job takes on a described cluster, stage by stage: an estimate by formula, which a simulation of it refines.

The time of a stage is the longest of three: its workers', its storage's and its driver's. That workers wait for each
other is in it only where they share a solve; failures and nodes that come late are not, nor that stages may overlap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal, final

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.cluster import StorageConfig
from ntkpipe.configs.described import Cluster
from ntkpipe.pipeline.cost import Cost
from ntkpipe.pipeline.prediction.durations import Durations, Times, durations_on, family
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.scheduling.blocks import planned_reads, strip_height
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import COMMITS_AT_ONCE
from ntkpipe.storage.schema import stored_bytes
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.workers.tasks import KernelTask, SolvePartTask, SolveStepTask, Task

Bound = Literal["workers", "storage", "driver"]

HOUR: Final = 3600.0

Shapes = Sequence[tuple[Task, int]]
"""A task of every size, and how many there are like it."""


@final
@dataclass(frozen=True, slots=True)
class StageForecast:
    """What a stage takes."""

    stage: str
    num_tasks: int
    cost: Cost
    num_reads: int
    """Requests."""
    num_writes: int
    task_seconds: float
    """Of its longest task, on the fastest workers."""
    total_seconds: float
    """Of all tasks, one after the other, as the workers share them; what receipts add up to, which the rounds of shared
    solves have none of."""
    worker_seconds: float
    """Of the workers side by side, as if they shared nothing."""
    storage_seconds: float
    driver_seconds: float
    start_seconds: float
    """Before its first task: workers that load what they need."""

    @property
    def seconds(self) -> float:
        """From its first task to its end."""
        return self.start_seconds + max(self.worker_seconds, self.storage_seconds, self.driver_seconds)

    @property
    def bound(self) -> Bound:
        """What takes the longest."""
        parts: dict[Bound, float] = {
            "workers": self.worker_seconds,
            "storage": self.storage_seconds,
            "driver": self.driver_seconds,
        }
        return max(parts, key=lambda name: parts[name])


@final
@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job takes on a cluster."""

    cluster: Cluster
    stages: tuple[StageForecast, ...]
    stored_bytes: int
    worker_bytes: int
    """Predicted peak of a worker."""
    measured: str
    """What the times rest on, in a few words."""

    @property
    def seconds(self) -> float:
        """From the first task to the end, once the nodes are there."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def price(self) -> float:
        """Of the nodes and of the requests; what is kept costs ``month_price``. 0 where a node's price is not known."""
        if not self.cluster.has_prices:
            return 0.0
        storage = self.cluster.storage
        reads = sum(stage.num_reads for stage in self.stages)
        # A receipt is one more.
        writes = sum(stage.num_writes + stage.num_tasks for stage in self.stages)
        requests = (reads * storage.price_per_million_reads + writes * storage.price_per_million_writes) / 1e6
        return self.cluster.price_per_hour * self.seconds / HOUR + requests

    @property
    def month_price(self) -> float:
        """Of what is stored, for a month."""
        return self.cluster.storage.price_per_tb_month * self.stored_bytes / 1e12


def forecast(workload: Workload, cluster: Cluster, calibration: Calibration | None = None) -> Forecast:
    """Predict what a job takes on a cluster. Takes no longer for more samples or nodes.

    Raises:
        PlanError: A single sample does not fit the memory that the job allows a worker.
    """
    durations = durations_on(workload, cluster, calibration)
    start = cluster.worker_start_seconds
    if calibration is not None and calibration.worker_start_seconds is not None:
        start = calibration.worker_start_seconds
    plan = workload.plan()
    stages: list[StageForecast] = []
    for price in plan.prices():
        shapes = list(plan.shapes(price.stage))
        if shapes:
            found = _stage(workload, cluster, durations, price.stage, shapes, price.cost)
            stages.append(replace(found, start_seconds=found.start_seconds + (0.0 if stages else start)))
    return Forecast(
        cluster=cluster,
        stages=tuple(stages),
        stored_bytes=stored_bytes(workload.geometry),
        worker_bytes=max(each.memory.peak_bytes for each in durations.values()),
        measured=_basis(workload, calibration),
    )


def _stage(
    workload: Workload, cluster: Cluster, durations: Mapping[str, Durations], stage: str, shapes: Shapes, cost: Cost
) -> StageForecast:
    num_tasks = sum(num for _, num in shapes)
    share = _share_read(workload, cluster, durations, shapes) if stage == KERNEL_STAGE else 1.0
    each = next(iter(durations.values()))
    in_rounds = list(_in_rounds(each)) if stage == SOLVE_STAGE else []
    all_shapes = [*shapes, *in_rounds]
    num_reads = sum(round(each.times(task).num_reads * share) * num for task, num in all_shapes)
    num_writes = sum(each.times(task).num_writes * num for task, num in all_shapes)
    read = round(sum(each.times(task).bytes_read * num for task, num in all_shapes) * share)
    written = sum(each.times(task).bytes_written * num for task, num in all_shapes)
    storage = cluster.storage
    total, side_by_side = _worker_seconds(cluster, durations, shapes, partial(_task_seconds, share))
    rounds = _rounds_seconds(cluster, durations) if in_rounds else 0.0
    return StageForecast(
        stage=stage,
        num_tasks=num_tasks,
        cost=replace(cost, bytes_read=read, bytes_written=written),
        num_reads=num_reads,
        num_writes=num_writes,
        task_seconds=min(max(found.times(task).seconds for task, _ in all_shapes) for found in durations.values()),
        total_seconds=total,
        worker_seconds=rounds + side_by_side,
        storage_seconds=max(
            read / storage.total_read + written / storage.total_write,
            (num_reads + num_writes) / storage.total_requests,
        ),
        driver_seconds=num_tasks * (cluster.driver_seconds_per_task + 1 / (storage.commits * COMMITS_AT_ONCE)),
        start_seconds=max(found.first_seconds.get(family(stage), 0.0) for found in durations.values()),
    )


def _share_read(workload: Workload, cluster: Cluster, durations: Mapping[str, Durations], shapes: Shapes) -> float:
    """Return which part of what blocks need is read; workers have the rest in memory from the blocks before."""
    kept = min(each.passes.kept_sides for each in durations.values())
    if kept < 2:
        return 1.0
    height = strip_height(workload.geometry, kept, cluster.num_workers)
    needed = sum(num * (1 if task.block.on_diagonal else 2) for task, num in shapes if isinstance(task, KernelTask))
    read, geometry = planned_reads(workload.geometry, height, cluster.num_workers), workload.geometry
    sides = sum(num_chunks(geometry.splits[name].num_samples, geometry.block_rows) for name in geometry.paired_splits)
    if kept >= sides:  # whoever has read one has it for good
        read = min(read, sides * cluster.num_workers)
    return min(1.0, read / needed)


def _in_rounds(durations: Durations) -> Iterator[tuple[Task, int]]:
    """Yield the tasks of shared solves that leave no receipt, and how many there are of each."""
    for name, shared in durations.rounds.items():
        yield SolvePartTask(name, 0, 0), shared.num_steps * shared.num_parts
        yield SolveStepTask(name), shared.num_steps + 1


def _rounds_seconds(cluster: Cluster, durations: Mapping[str, Durations]) -> float:
    """Return how long the rounds of all shared solves take: one after the other, each until its last part is there."""
    total = 0.0
    for name, shared in next(iter(durations.values())).rounds.items():
        part = SolvePartTask(name, 0, 0)
        _, parts = _worker_seconds(cluster, durations, [(part, shared.num_parts)], partial(_task_seconds, 1.0))
        times = [each.times(part) for each in durations.values()]
        # As many as there are workers begin at once, and the last one's bytes come after those of all others.
        at_once = min(shared.num_parts, cluster.num_workers)
        parts += min(_queueing_seconds(cluster.storage, at_once, each) for each in times)
        parts = max(
            parts, min(_queueing_seconds(cluster.storage, shared.num_parts, each) + each.seconds for each in times)
        )
        step = min(each.times(SolveStepTask(name)).seconds for each in durations.values())
        total += shared.num_steps * parts + (shared.num_steps + 1) * step
    return total


def _worker_seconds(
    cluster: Cluster, durations: Mapping[str, Durations], shapes: Shapes, seconds_of: Callable[[Durations, Task], float]
) -> tuple[float, float]:
    """Return how long all tasks take, and workers that share them: never less than a whole task."""
    rate, whole = 0.0, float("inf")
    for group in cluster.groups:
        each = durations[group.name]
        seconds = [(seconds_of(each, task), num) for task, num in shapes]
        rate += group.num_workers / sum(time * num for time, num in seconds)
        # Equal tasks come in rounds, the last of which may leave workers without one.
        rounds = max(time * -(-num // cluster.num_workers) for time, num in seconds)
        whole = min(whole, rounds)
    return cluster.num_workers / rate, max(1 / rate, whole)


def _queueing_seconds(storage: StorageConfig, num: int, times: Times) -> float:
    """Return for how long the last of so many equal tasks, which read and write at the same time, waits for the others."""
    reads = max(num * times.bytes_read / storage.total_read, num * times.num_reads / storage.total_requests)
    writes = max(num * times.bytes_written / storage.total_write, num * times.num_writes / storage.total_requests)
    return max(0.0, reads - times.read) + max(0.0, writes - times.write)


def _task_seconds(share: float, durations: Durations, task: Task) -> float:
    times = durations.times(task)
    # Almost all blocks follow one with the same rows.
    kept = times.kept if isinstance(task, KernelTask) else 0.0
    return times.compute - kept + times.read * share + times.write


def _basis(workload: Workload, calibration: Calibration | None) -> str:
    """Say what predicted times rest on."""
    if calibration is None:
        return "nominal rates, unmeasured"
    if not calibration.stages:
        return f"rates measured at {calibration.measured_at}, no tasks"
    job = "this job" if calibration.job_digest == workload.kernels_digest else f"job {calibration.job!r}"
    return f"tasks of {job}, measured at {calibration.measured_at}"
