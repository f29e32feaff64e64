"""What a run may use. Nothing here changes the result."""

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import AfterValidator, ByteSize, Field, model_validator

from ntkpipe.configs.base import Section

LEAST_SHARE: Final = 0.0001
"""The smallest part of a CPU, a GPU or another resource that Ray knows."""

RAYS_OWN: Final = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
"""Names that no other resource of a Ray cluster may have."""


def _known_to_ray(amount: float) -> float:
    if 0 < amount < LEAST_SHARE:
        raise ValueError(f"{amount:g} is too small a part; Ray knows 0, and {LEAST_SHARE:g} and more")
    return amount


def _whole_above_one(amount: float) -> float:
    if amount > 1 and not amount.is_integer():
        raise ValueError(f"{amount:g} is neither a part of a GPU nor a whole number of them")
    return amount


Amount = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_known_to_ray)]
"""Of a resource of a Ray cluster."""

GpuAmount = Annotated[Amount, AfterValidator(_whole_above_one)]


def _custom(name: str) -> str:
    if name in RAYS_OWN:
        raise ValueError(f"{name} is a resource of Ray's own: use cpus and gpus")
    return name


CustomName = Annotated[str, Field(min_length=1), AfterValidator(_custom)]


class PoolConfig(Section):
    """Some equal workers among others: of another kind of GPU, or on CPUs."""

    workers: int = Field(1, ge=1)
    """How many are wanted; those for which there is no room yet wait for a node to join."""
    device: str = "cpu"
    """A PyTorch device, or ``auto``: a GPU where Ray has any, otherwise the CPU."""
    cpus: Amount = 1.0
    """Of the cluster, that each worker takes."""
    gpus: GpuAmount | None = None
    """Of the cluster, that each worker takes, such as 0.5; by default one on a GPU, none on a CPU."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of each worker; by default as many as it takes CPUs."""
    accelerator: str | None = None
    """The kind of GPU that is asked for, as Ray names it: ``H100``."""
    custom: dict[CustomName, Amount] = Field(default_factory=dict)
    """Other resources of the cluster that each worker takes, such as those that some nodes are marked with."""

    @property
    def wanted(self) -> str:
        """What is wanted, in words; on a device ``auto``, a GPU is taken only where there is one."""
        gpus = self.gpus if self.gpus is not None else float(self.device not in ("cpu", "auto"))
        amounts = {"CPU": self.cpus, "GPU": gpus} | self.custom
        parts = [f"{amount:g} {name}" for name, amount in amounts.items() if amount]
        kind = self.device if self.accelerator is None else f"{self.device} ({self.accelerator})"
        return f"{self.workers:,} on {kind}" + (f", each with {' and '.join(parts)}" if parts else "")


class ResourcesConfig(Section):
    """Executor, workers and limits; every field may change when a run is resumed."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "executor",
            "address",
            "workers",
            "threads_per_worker",
            "device",
            "batch_size",
            "max_worker_bytes",
            "max_attempts",
            "task_seconds",
            "start_seconds",
            "checkpoint_seconds",
            "share_solves",
            "max_bad_share",
            "grace_seconds",
            "cpus_per_worker",
            "gpus_per_worker",
            "pools",
            "slow_factor",
        }
    )

    executor: Literal["serial", "ray"] = "serial"
    """``serial`` computes in this process; ``ray`` on worker processes."""
    address: str = "local"
    """Of the Ray cluster: ``local`` starts a private one and ends it with the run."""
    workers: int = Field(2, ge=1)
    """Ray workers that are wanted; the run starts with the first one, and uses nodes that join later."""
    threads_per_worker: int | None = Field(None, ge=1)
    """CPU threads of each worker; by default the machine's cores shared evenly, on a cluster as many as it takes CPUs."""
    device: str = "cpu"
    """A PyTorch device: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one."""
    cpus_per_worker: Amount = 1.0
    """CPUs of a Ray cluster that each worker takes."""
    gpus_per_worker: GpuAmount | None = None
    """GPUs of a Ray cluster that each worker takes; 0.5 lets two workers share one. By default one with ``device: cuda``."""
    pools: tuple[PoolConfig, ...] = ()
    """Workers of several kinds in one run, in place of ``workers`` and ``device``; each gets as much as it can do."""
    batch_size: int | None = Field(None, ge=1)
    """Samples per forward pass at the most; by default as many as are fast on the device, up to 256. Never more than
    ``max_worker_bytes`` allows."""
    max_worker_bytes: ByteSize = Field(ByteSize(4 * 2**30), ge=2**20)
    """Memory that a worker may take in the features and kernel stages, such as ``8GiB``. Batches, passes over output
    vectors and rows of exact kernels that are kept are chosen to fit; ``ntkpipe plan`` shows them."""
    checkpoint_seconds: float = Field(30.0, ge=0)
    """Between two stored states of an iterative solver; a kill loses at most that and the step that is being taken."""
    share_solves: bool = True
    """Whether the products of a solve are shared between the workers, where there are several and its solver allows it.
    Every bit is the same either way."""
    max_attempts: int = Field(3, ge=1)
    """How often a task is tried before it is set aside."""
    max_bad_share: float = Field(0.0, ge=0, lt=1)
    """Of a stage's tasks, how many may be set aside for the run to go on to the next stage; what needs them is left out.
    Otherwise the run fails at the end of the stage with a list of them."""
    grace_seconds: float = Field(20.0, ge=0)
    """How long a driver that is told to stop (SIGTERM) waits for tasks under way before it leaves them."""
    task_seconds: float = Field(3600.0, gt=0)
    """A task that takes longer is taken from its worker and tried again. Of a solve that has stored a later state since,
    that is no failed attempt."""
    start_seconds: float = Field(600.0, gt=0)
    """A worker that takes longer to start, or for which there is no room for so long, is started again. If none has
    come up after three times this, the run ends: give more where machines have to be made first. What every worker lacks, such
    as a device, ends it at once."""
    slow_factor: float = Field(10.0, gt=1)
    """A task of a stage of equal ones is late, too, when it takes so many times longer than such tasks take, and more than
    a minute."""

    @model_validator(mode="after")
    def _pools_need_ray(self) -> Self:
        if self.pools and self.executor != "ray":
            raise ValueError("resources.pools are Ray workers; set resources.executor=ray")
        return self

    @property
    def worker_pools(self) -> tuple[PoolConfig, ...]:
        """The workers that are wanted; one pool unless several are given."""
        if self.pools:
            return self.pools
        pool = PoolConfig(
            workers=self.workers,
            device=self.device,
            cpus=self.cpus_per_worker,
            gpus=self.gpus_per_worker,
            threads=self.threads_per_worker,
        )
        return (pool,)

    @property
    def num_workers(self) -> int:
        """How many workers are wanted in all."""
        return 1 if self.executor == "serial" else sum(pool.workers for pool in self.worker_pools)

    @property
    def on_cpu(self) -> bool:
        """Whether all workers compute on CPUs for sure."""
        return all(pool.device == "cpu" for pool in self.worker_pools)

    @property
    def wanted(self) -> str:
        """The workers that are wanted, in words: ``2 on cuda, each with 1 CPU and 1 GPU``."""
        if self.executor == "serial":
            return f"1 on {self.device}, in this process"
        return "; ".join(pool.wanted for pool in self.worker_pools)
