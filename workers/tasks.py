"""What a worker can be asked to do. Plain data: importing this module needs no torch."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from ntkpipe.configs.run import RunConfig
from ntkpipe.storage.factor import factor_stage, factor_task
from ntkpipe.storage.features import FEATURES_STAGE, MOMENTS_STAGE, derive_stage, derive_task
from ntkpipe.storage.grid import Block, Shard
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.records import ChunkRecord, Geometry, ObjectRecord
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.workers.jacobians.routes import ParameterRoute
from ntkpipe.workers.passes import PassPlan

ANALYZE_STAGE: Final = "analyze"

MEMORY_KIND: Final = "memory"
"""Of the failure of an attempt that ran out of memory; the next one is made with smaller batches."""


@dataclass(frozen=True, slots=True)
class MomentsTask:
    """Second moments of the gradients that a kernel is preconditioned with."""

    kernel: str
    stage: Literal["moments"] = MOMENTS_STAGE

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return self.kernel


@dataclass(frozen=True, slots=True)
class FeaturesTask:
    """Outputs, diagonals and features of all kernels for one shard."""

    shard: Shard
    stage: Literal["features"] = FEATURES_STAGE

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return self.shard.task


@dataclass(frozen=True, slots=True)
class KernelTask:
    """One block of all kernel matrices, with their components."""

    block: Block
    stage: Literal["kernel"] = KERNEL_STAGE

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return self.block.task


@dataclass(frozen=True, slots=True)
class DeriveTask:
    """What a derived kernel keeps for a range of samples, from a pass over the rows of the matrix it is made of."""

    kernel: str
    rows: Shard
    """As many samples as a block has rows."""
    level: int

    @property
    def stage(self) -> str:
        """Kernels of a level need those of the levels before it."""
        return derive_stage(self.level)

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return derive_task(self.kernel, self.rows)


@dataclass(frozen=True, slots=True)
class FactorTask:
    """One tile of a Cholesky factor."""

    name: str
    """Of the solution."""
    row: int
    column: int

    @property
    def stage(self) -> str:
        """A tile needs those of all columns before its own, and the diagonal one of its own."""
        return factor_stage(self.row, self.column)

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return factor_task(self.name, self.row, self.column)


@dataclass(frozen=True, slots=True)
class SolveTask:
    """One linear system and its predictions on every split with a kernel to the training split."""

    name: str
    stage: Literal["solve"] = SOLVE_STAGE

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return self.name


@dataclass(frozen=True, slots=True)
class SolveStepTask:
    """The cheap end of a step of a solve that is shared between workers, or its set-up.

    It has no receipt: what it leaves is the next state of the solver.
    """

    name: str
    stage: Literal["solve"] = SOLVE_STAGE

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return f"{self.name}/step"


@dataclass(frozen=True, slots=True)
class SolvePartTask:
    """One summand of the step after a stored state of a solver. It has no receipt: the step that uses it counts."""

    name: str
    place: int
    """Of the state."""
    part: int
    stage: Literal["solve"] = SOLVE_STAGE

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return f"{self.name}/{self.place}-{self.part}"


@dataclass(frozen=True, slots=True)
class AnalysisTask:
    """One analysis."""

    name: str
    stage: Literal["analyze"] = ANALYZE_STAGE

    @property
    def id(self) -> str:
        """Unique within the stage."""
        return self.name


SharedSolveTask = SolveStepTask | SolvePartTask
"""Without a receipt."""

Task = MomentsTask | FeaturesTask | KernelTask | DeriveTask | FactorTask | SolveTask | SharedSolveTask | AnalysisTask


def covered(task: Task) -> tuple[Shard, ...]:
    """Return the samples that a task looks at; nothing where it is more than a few."""
    match task:
        case FeaturesTask(shard=shard):
            return (shard,)
        case KernelTask(block=block):
            return (block.rows, block.columns)
    return ()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything a worker needs to start; travels to other processes."""

    url: str
    """Of the run."""
    config: RunConfig
    geometry: Geometry
    routes: dict[str, tuple[ParameterRoute, ...]]
    """Of every differentiated parameter, as found by the driver, for each member of the model."""
    weights_digests: dict[str, str]
    """Of the members that were planned for; a worker that builds another one refuses to work."""
    input_digests: dict[str, tuple[str, ...]]
    """Per split, one digest of the inputs of each shard."""
    modules: dict[str, tuple[str, ...]]
    """By kernel of activations: all modules that would belong to it if the model called them."""
    fingerprints: dict[str, str]
    """Digests of what was planned for; those of files that kernels are defined by are named ``FIELD.KERNEL``."""
    passes: PassPlan
    """How batches are cut to stay within the memory of a worker."""
    choices: dict[str, str]
    """Of solutions whose solver ntkpipe chose: why this one."""
    threads: int | None
    """CPU threads of the worker; None leaves PyTorch's choice."""
    device: str = "cpu"
    """That it computes on, or ``auto``."""
    import_path: tuple[str, ...] = ()
    """Folders appended to the module search path, so that user code is found as on the driver."""
    epoch: int = 0
    """Of the driver that started the worker, which writes nothing once there is a later one; 0 for no driver."""

    def passes_of(self, task: Task, halvings: int) -> PassPlan:
        """Return how the batches of an attempt at a task are cut.

        Args:
            task: To be tried.
            halvings: How many attempts at it have run out of memory.
        """
        num_samples = self._num_samples(task)
        passes = self.passes.halved(halvings, num_samples) if halvings and num_samples else self.passes
        # All other tasks may need the memory that is planned for sides of blocks.
        return passes if isinstance(task, KernelTask) else replace(passes, kept_sides=0)

    def can_halve(self, task: Task, halvings: int) -> bool:
        """Return whether an attempt after one more halving would need less memory than one after so many."""
        num_samples = self._num_samples(task)
        now, then = (self.passes.halved(times, num_samples) for times in (halvings, halvings + 1))
        if not isinstance(task, KernelTask):
            then = replace(then, kept_sides=now.kept_sides)  # nobody else keeps any
        return num_samples > 0 and now != then

    def _num_samples(self, task: Task) -> int:
        """Return how many samples the batches of a task are cut from; 0 for a task without batches."""
        if isinstance(task, MomentsTask):
            return self.geometry.splits[self.geometry.train_split].num_samples
        return max((len(samples) for samples in covered(task)), default=0)


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a finished task reports; a few hundred bytes."""

    chunks: tuple[ChunkRecord, ...]
    objects: tuple[ObjectRecord, ...]
    seconds: float
    worker: str
    versions: dict[str, str]
    bytes_read: int = 0
    """From the chunks of the run."""
    chunks_read: int = 0
    peak_bytes: int = 0
    """The most memory that the process of the worker has held so far."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a stage function wrote for a task."""

    chunks: tuple[ChunkRecord, ...]
    objects: tuple[ObjectRecord, ...] = ()
