"""A described cluster: groups of equal nodes, their storage, and the catalogue that their devices come from.

Rates are work per second, sizes are bytes, times are seconds, prices are in one currency of the user's choice.
"""

from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, model_validator

from ntkpipe.configs.base import Section, unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.base import NAME_PATTERN

Rate = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class DeviceConfig(Section):
    """What a device does per second, and a usual node that it comes in."""

    kind: Literal["cpu", "gpu"]
    source: str
    """Where the figures come from, in a few words: measured, or a data sheet."""
    measured: bool = False
    """Whether they were measured with ntkpipe's own operations."""
    float32_flops: Rate
    """Of matrix products in single precision."""
    float64_flops: Rate
    bytes: Rate
    """Read or written in passes over memory."""
    fft_flops: Rate
    """Of batches of real Fourier transforms, each counted as 2.5 n log2 n."""
    scatters: Rate
    """Numbers added to random places of a row."""
    launch_seconds: Rate
    """Taken by starting an operation, however small."""
    cores: int = Field(1, ge=1)
    """Of a CPU, those that the figures are for. A worker with fewer threads has its share of them."""
    memory: ByteSize = Field(ByteSize(0), ge=0)
    """Of a GPU; a CPU uses that of its node."""
    node_devices: int = Field(1, ge=1)
    """GPUs in a usual node."""
    node_cpus: int = Field(ge=1)
    """Cores of a usual node."""
    node_memory: ByteSize = Field(gt=0)
    """Main memory of a usual node."""

    @model_validator(mode="after")
    def _gpus_have_memory(self) -> Self:
        if self.kind == "gpu" and not self.memory:
            raise ValueError("memory is missing: a GPU has its own")
        return self


class StorageConfig(Section):
    """A place for runs, shared by all workers."""

    source: str
    """Where the figures come from, in a few words."""
    measured: bool = False
    worker_read: Rate
    """Bytes per second that one worker reads."""
    worker_write: Rate
    total_read: Rate
    """Bytes per second that all workers together read at the most."""
    total_write: Rate
    request_seconds: float = Field(ge=0)
    """Until a request is answered, beside its bytes."""
    total_requests: Rate
    """Requests per second that all workers together make at the most."""
    commits: Rate
    """Receipts per second if the driver wrote them one after the other; several are under way at once."""
    capacity: ByteSize | None = None
    """What fits; None where nobody knows a limit."""
    price_per_tb_month: float = Field(0.0, ge=0)
    """For keeping 10^12 bytes for a month."""
    price_per_million_writes: float = Field(0.0, ge=0)
    price_per_million_reads: float = Field(0.0, ge=0)


class Catalogue(Section):
    """Devices and storages by name."""

    devices: dict[Name, DeviceConfig] = Field(default_factory=dict)
    storages: dict[Name, StorageConfig] = Field(default_factory=dict)

    def device(self, name: str) -> DeviceConfig:
        """Return a device.

        Raises:
            ConfigError: There is none of that name.
        """
        if name not in self.devices:
            raise ConfigError(unknown_name("device", name, self.devices) + ". Add others with --catalogue FILE.")
        return self.devices[name]

    def storage(self, name: str) -> StorageConfig:
        """Return a storage.

        Raises:
            ConfigError: There is none of that name.
        """
        if name not in self.storages:
            raise ConfigError(unknown_name("storage", name, self.storages) + ". Add others with --catalogue FILE.")
        return self.storages[name]

    def joined(self, other: "Catalogue") -> "Catalogue":
        """Return a catalogue in which the entries of another one come first."""
        return Catalogue(devices=self.devices | other.devices, storages=self.storages | other.storages)


class NodeGroup(Section):
    """Equal nodes."""

    name: Name = ""
    """By default that of the device."""
    nodes: int = Field(ge=1)
    device: str
    """Name in the catalogue."""
    devices_per_node: int = Field(1, ge=1)
    """GPUs of a node; means nothing for CPUs."""
    cpus: int | None = Field(None, ge=1)
    """Cores of a node."""
    memory: ByteSize | None = Field(None, gt=0)
    """Main memory of a node."""
    workers_per_node: int | None = Field(None, ge=1)
    """By default one for each GPU, or on CPUs one for every two cores."""
    price_per_hour: float = Field(0.0, ge=0)
    """Of a node."""
    hours_between_failures: float | None = Field(None, gt=0)
    """On average, of one node: crashes, or a spot node that is taken away. None for a node that never fails."""
    start_seconds: float = Field(0.0, ge=0)
    """Until a node that was asked for is there; a worker's own start comes on top."""


class ClusterConfig(Section):
    """What a run may use, without a run."""

    name: str = "cluster"
    groups: tuple[NodeGroup, ...] = Field(min_length=1)
    storage: str | StorageConfig = "shared-disk"
    """Name in the catalogue, or its figures."""
    driver_seconds_per_task: float = Field(0.0015, ge=0)
    """Of the driver's own work for a task beside its receipt. The default was measured: 1.0 to 1.2 ms of processor time for
    each of 1,500 tiny tasks on two local Ray workers, receipts on a local disk included."""
    worker_start_seconds: float = Field(10.0, ge=0)
    """Of a worker on a node that is there: libraries, model and data."""
    catalogue: Catalogue = Catalogue()
    """Devices and storages of its own."""
