"""What a job takes on a described cluster, stage by stage: an estimate by formula, which a simulation of it refines.

The time of a stage is the longest of three: its workers', its storage's and its driver's. What workers wait for each
other, failures and nodes that come late are not in it, nor that stages may overlap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.described import Cluster
from ntkpipe.pipeline.cost import Cost
from ntkpipe.pipeline.prediction.durations import Durations, durations_on, family
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.scheduling.blocks import planned_reads, strip_height
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import COMMITS_AT_ONCE
from ntkpipe.storage.schema import stored_bytes
from ntkpipe.workers.tasks import KernelTask, SolveTask, Task

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
    """Of all tasks, one after the other, as the workers share them; what receipts add up to."""
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
    num_reads = sum(round(each.times(task).num_reads * share) * num for task, num in shapes)
    num_writes = sum(each.times(task).num_writes * num for task, num in shapes)
    read = round(cost.bytes_read * share)
    storage = cluster.storage
    total, side_by_side = _worker_seconds(workload, cluster, durations, shapes, share)
    return StageForecast(
        stage=stage,
        num_tasks=num_tasks,
        cost=replace(cost, bytes_read=read),
        num_reads=num_reads,
        num_writes=num_writes,
        task_seconds=min(max(found.times(task).seconds for task, _ in shapes) for found in durations.values()),
        total_seconds=total,
        worker_seconds=side_by_side,
        storage_seconds=max(
            read / storage.total_read + cost.bytes_written / storage.total_write,
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


def _worker_seconds(
    workload: Workload, cluster: Cluster, durations: Mapping[str, Durations], shapes: Shapes, share: float
) -> tuple[float, float]:
    """Return how long all tasks take, and workers that share them: never less than a whole task."""
    rate, whole = 0.0, float("inf")
    for group in cluster.groups:
        each = durations[group.name]
        seconds = [(_task_seconds(workload, each, task, share, group.num_workers), num) for task, num in shapes]
        rate += group.num_workers / sum(time * num for time, num in seconds)
        # Equal tasks come in rounds, the last of which may leave workers without one.
        rounds = max(time * -(-num // cluster.num_workers) for time, num in seconds)
        whole = min(whole, rounds)
    return cluster.num_workers / rate, max(1 / rate, whole)


def _task_seconds(workload: Workload, durations: Durations, task: Task, share: float, num_workers: int) -> float:
    times = durations.times(task)
    if isinstance(task, SolveTask) and num_workers > 1 and workload.config.resources.share_solves:
        solve = workload.config.solve[workload.geometry.solutions.index(task.name)]
        return times.seconds / num_workers if solve.in_parts else times.seconds
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
