"""What a run may use. Nothing here changes the result."""

from typing import ClassVar, Literal

from pydantic import ByteSize, Field

from ntkpipe.configs.base import Section


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
            "checkpoint_seconds",
            "share_solves",
            "max_bad_share",
            "grace_seconds",
        }
    )

    executor: Literal["serial", "ray"] = "serial"
    """``serial`` computes in this process; ``ray`` on worker processes."""
    address: str = "local"
    """Of the Ray cluster: ``local`` starts a private one and ends it with the run."""
    workers: int = Field(2, ge=1)
    """Ray workers."""
    threads_per_worker: int | None = Field(None, ge=1)
    """CPU threads of each worker; by default the machine's cores shared evenly."""
    device: str = "cpu"
    """A PyTorch device: ``cpu``, ``cuda``."""
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
