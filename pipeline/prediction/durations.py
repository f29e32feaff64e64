"""How long a task takes on a device and a storage, before it is run.

Compute follows the roofline that routes are chosen by: amounts of work from the routes, speeds from a described device.
Bytes follow the prices of the plan. What a roofline leaves out (Python, allocation, cache misses) differs by stage and
hardly by device, so that a stage's ``efficiency``, roofline over measured seconds, is measured once, by ``ntkpipe doctor
--calibrate``, and carried over to other devices.

Everything is O(1) for a task: tasks of one stage and shape take equally long, and are asked for once.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, final

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.cluster import DeviceConfig, StorageConfig
from ntkpipe.configs.described import Cluster
from ntkpipe.pipeline.prediction.arithmetic import Arithmetic
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.storage.factor import FACTOR_PREFIX
from ntkpipe.storage.features import DERIVE_PREFIX
from ntkpipe.workers.passes import PassPlan, WorkerMemory
from ntkpipe.workers.solvers.sharing import Rounds
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
from ntkpipe.workers.work import Work

CHUNK_SUMS: Final = 3.0e9
"""Bytes per second of a chunk that is summed and copied before it is written, or after it was read; on one core."""

TASK_SECONDS: Final = 0.002
"""Of a worker for any task: looking whether its driver was replaced, opening arrays, the result's way back."""


@final
@dataclass(frozen=True, slots=True)
class Times:
    """What a task takes on a worker that has its device and its storage to itself."""

    compute: float
    """Seconds of the worker's device, or of its cores."""
    read: float
    """Seconds that its bytes and requests take, at a single worker's rates."""
    write: float
    bytes_read: int
    """If nothing that it needs is in the worker's memory."""
    bytes_written: int
    num_reads: int
    """Requests."""
    num_writes: int
    kept: float = 0.0
    """The part of ``compute`` that is saved if the worker's last block had the same rows."""
    kept_bytes: int = 0
    """The part of ``bytes_read`` that belongs to its rows."""

    @property
    def seconds(self) -> float:
        """Altogether, one after the other."""
        return self.compute + self.read + self.write


def family(stage: str) -> str:
    """Return the stage, of which those of derived kernels and of factors are one each."""
    for prefix in (DERIVE_PREFIX, FACTOR_PREFIX):
        if stage.startswith(prefix):
            return prefix.rstrip("-")
    return stage


@final
@dataclass(slots=True)
class Durations:
    """Durations of the tasks of one job on one kind of worker.

    Args:
        workload: The job.
        device: Of the worker.
        share: Of the device that the worker has: for CPUs its threads over the cores of the figures, which may be
            above 1; for GPUs at most 1.
        storage: Of the run.
        efficiency: By family of stages, see :func:`family`, what share of the roofline's speed was reached; 1 for what
            is missing.
        first_seconds: By family of stages, by how much a worker's first task takes longer: it loads model and data.
        shares_solves: Whether several workers share the solves that can be shared.
    """

    workload: Workload
    device: DeviceConfig
    share: float
    storage: StorageConfig
    efficiency: Mapping[str, float] = field(default_factory=dict)
    first_seconds: Mapping[str, float] = field(default_factory=dict)
    shares_solves: bool = False
    _arithmetic: Arithmetic = field(init=False)
    _known: dict[Hashable, Times] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        on_cpu = self.device.kind == "cpu"
        self._arithmetic = Arithmetic(self.workload, on_cpu=on_cpu, shares_solves=self.shares_solves)

    @property
    def memory(self) -> WorkerMemory:
        """Predicted peak of a worker."""
        return self._arithmetic.memory

    @property
    def passes(self) -> PassPlan:
        """How batches are cut."""
        return self._arithmetic.passes

    @property
    def rounds(self) -> Mapping[str, Rounds]:
        """How solves are shared, by solution; none for those that are one task."""
        return self._arithmetic.rounds

    def times(self, task: Task) -> Times:
        """Return what a task takes."""
        key = shape_of(task)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._times(task)
        return found

    def work(self, task: Task) -> Work:
        """Return how much work a task is."""
        return self._arithmetic.of(task).work

    def seconds(self, work: Work) -> float:
        """Return what an amount of work takes, at the speed of the roofline."""
        device, share = self.device, self.share
        rated = (
            work.flops / device.float32_flops
            + work.double_flops / device.float64_flops
            + work.bytes / device.bytes
            + work.fft_flops / device.fft_flops
            + work.scatters / device.scatters
        )
        return rated / share + work.launches * device.launch_seconds

    def read_seconds(self, num_bytes: int, num_reads: int) -> float:
        """Return what reading and checking chunks takes a worker that has the storage to itself."""
        storage = self.storage
        return num_bytes * (1 / storage.worker_read + 1 / CHUNK_SUMS) + num_reads * storage.request_seconds

    def _times(self, task: Task) -> Times:
        amount, storage = self._arithmetic.of(task), self.storage
        efficiency = self.efficiency.get(family(task.stage), 1.0)
        sums = amount.bytes_written / CHUNK_SUMS
        return Times(
            compute=(self.seconds(amount.work) + sums) / efficiency + TASK_SECONDS,
            # What is read is summed as well, but only if it is read at all.
            read=self.read_seconds(amount.bytes_read, amount.num_reads),
            write=amount.bytes_written / storage.worker_write + amount.num_writes * storage.request_seconds,
            bytes_read=amount.bytes_read,
            bytes_written=amount.bytes_written,
            num_reads=amount.num_reads,
            num_writes=amount.num_writes,
            kept=self.seconds(amount.kept) / efficiency,
            kept_bytes=amount.kept_bytes,
        )


def durations_on(workload: Workload, cluster: Cluster, calibration: Calibration | None = None) -> dict[str, Durations]:
    """Return the durations of a job on the workers of every group of a cluster, by the name of the group.

    Args:
        workload: The job.
        cluster: What it is to run on.
        calibration: What was measured; without it the rates of the catalogue are taken as they are.

    Raises:
        PlanError: A single sample does not fit the memory that the job allows a worker.
    """
    efficiency = calibration.efficiency if calibration is not None else {}
    first = calibration.first_seconds if calibration is not None else {}
    shares = workload.config.resources.share_solves and cluster.num_workers > 1
    return {
        group.name: Durations(workload, group.device, group.share, cluster.storage, efficiency, first, shares)
        for group in cluster.groups
    }


def shape_of(task: Task) -> Hashable:
    """Return what is equal for tasks that take equally long."""
    match task:
        case FeaturesTask(shard=shard):
            return ("features", len(shard))
        case KernelTask(block=block):
            sides = (len(block.rows), len(block.columns))
            return ("kernel", *sides, block.on_diagonal, block.rows.split == block.columns.split)
        case DeriveTask():
            return (task.stage, task.kernel, len(task.rows))
        case FactorTask():
            return ("factor", task.name, task.column, task.row == task.column)
        case SolvePartTask() | SolveStepTask():
            return (type(task).__name__, task.name)
        case MomentsTask() | SolveTask() | AnalysisTask():
            return (task.stage, task.id)
