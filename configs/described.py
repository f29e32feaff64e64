"""From what a user writes of a cluster, on the command line or in a file, to a description in which nothing is missing."""

import itertools
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Final, final

from pydantic import ValidationError

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.cluster import Catalogue, ClusterConfig, DeviceConfig, NodeGroup, StorageConfig
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import describe_findings, read_text
from ntkpipe.configs.yaml_text import parse_yaml

CORES_PER_WORKER: Final = 2
"""Of a worker on a node without GPUs, where nothing else is said."""

PROCESS_SHARE: Final = 0.9
"""Of a node's main memory that workers may fill; the rest is the system's and Ray's."""

_SHORT = re.compile(r"^(?P<nodes>\d+)x(?:(?P<devices>\d+)x)?(?P<device>[A-Za-z][\w.-]*)$")


@final
@dataclass(frozen=True, slots=True)
class Group:
    """Equal nodes, with nothing left open."""

    name: str
    nodes: int
    workers_per_node: int
    device_name: str
    device: DeviceConfig
    devices_per_node: int
    """GPUs; 0 for nodes without."""
    cpus: int
    """Cores of a node."""
    node_bytes: int
    """Main memory of a node."""
    price_per_hour: float
    """Of a node."""
    hours_between_failures: float | None
    start_seconds: float

    @property
    def num_workers(self) -> int:
        """On all nodes."""
        return self.nodes * self.workers_per_node

    @property
    def threads(self) -> int:
        """Of a worker."""
        return max(1, self.cpus // self.workers_per_node)

    @property
    def share(self) -> float:
        """Of the device's rates that a worker has while all others work as well."""
        if self.device.kind == "cpu":
            return min(self.threads, self.cpus / self.workers_per_node) / self.device.cores
        return min(1.0, self.devices_per_node / self.workers_per_node)

    @property
    def host_bytes(self) -> int:
        """Main memory of a worker."""
        return int(PROCESS_SHARE * self.node_bytes / self.workers_per_node)

    @property
    def worker_bytes(self) -> int:
        """Memory of a worker for what it computes: main memory, or its share of a GPU's."""
        return self.host_bytes if self.device.kind == "cpu" else int(self.device.memory * self.share)

    def with_workers(self, workers_per_node: int) -> "Group":
        """Return the group with another number of workers on each node."""
        return replace(self, workers_per_node=workers_per_node)


@final
@dataclass(frozen=True, slots=True)
class Cluster:
    """A described cluster, with nothing left open."""

    name: str
    groups: tuple[Group, ...]
    storage_name: str
    storage: StorageConfig
    driver_seconds_per_task: float
    worker_start_seconds: float

    @property
    def num_nodes(self) -> int:
        """Of all groups."""
        return sum(group.nodes for group in self.groups)

    @property
    def num_workers(self) -> int:
        """Of all groups."""
        return sum(group.num_workers for group in self.groups)

    @property
    def price_per_hour(self) -> float:
        """Of all nodes."""
        return sum(group.nodes * group.price_per_hour for group in self.groups)

    @property
    def has_prices(self) -> bool:
        """Whether the price of every node is known; that of requests alone would be taken for all that a run costs."""
        return all(group.price_per_hour for group in self.groups)

    def resized(self, nodes: int) -> "Cluster":
        """Return the cluster with about so many nodes in all, at least one in each group."""
        times = nodes / self.num_nodes
        groups = (replace(group, nodes=max(1, round(group.nodes * times))) for group in self.groups)
        return replace(self, groups=tuple(groups))


def shipped_catalogue() -> Catalogue:
    """Return the devices and storages that ntkpipe knows."""
    text = (resources.files("ntkpipe.configs") / "devices" / "catalogue.yaml").read_text("utf-8")
    return Catalogue.model_validate(parse_yaml(text, "the catalogue of devices"))


def load_catalogue(*files: str) -> Catalogue:
    """Return the catalogue with the entries of some files, which come before those of the same name.

    Raises:
        ConfigError: A file cannot be read or is not a catalogue.
    """
    found = shipped_catalogue()
    for file in files:
        document = parse_yaml(read_text(Path(file)), file)
        try:
            found = found.joined(Catalogue.model_validate(document))
        except ValidationError as error:
            raise ConfigError(describe_findings(f"{file}: the catalogue", error)) from None
    return found


def cluster_names() -> list[str]:
    """Return the names of the clusters that ship with ntkpipe."""
    folder = resources.files("ntkpipe.configs") / "clusters"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_cluster(spec: str | ClusterConfig, catalogue: Catalogue | None = None) -> Cluster:
    """Return a described cluster.

    Args:
        spec: ``8xh100`` (nodes with one device each), ``2x8xh100`` (two nodes of eight), several of them with commas
            between and a storage behind ``@`` (``4xcpu,2xa100-80@s3``); the name of a cluster that ships with ntkpipe;
            or a YAML file.
        catalogue: Of devices and storages; by default the one that ships with ntkpipe.

    Raises:
        ConfigError: The text is none of these, or names what is not in the catalogue.
    """
    config = spec if isinstance(spec, ClusterConfig) else _read(spec)
    known = (catalogue or shipped_catalogue()).joined(config.catalogue)
    inline = isinstance(config.storage, StorageConfig)
    return Cluster(
        name=config.name,
        groups=tuple(_unique([_group(group, known) for group in config.groups])),
        storage_name="its own" if inline else str(config.storage),
        storage=config.storage if isinstance(config.storage, StorageConfig) else known.storage(config.storage),
        driver_seconds_per_task=config.driver_seconds_per_task,
        worker_start_seconds=config.worker_start_seconds,
    )


def _group(group: NodeGroup, catalogue: Catalogue) -> Group:
    device = catalogue.device(group.device)
    devices = group.devices_per_node if device.kind == "gpu" else 0
    # A usual node has its cores and memory for all of its devices; one with fewer has fewer.
    part = devices / device.node_devices if devices else 1.0
    cpus = group.cpus or max(1, round(device.node_cpus * part))
    return Group(
        name=group.name or group.device,
        nodes=group.nodes,
        workers_per_node=group.workers_per_node or devices or max(1, cpus // CORES_PER_WORKER),
        device_name=group.device,
        device=device,
        devices_per_node=devices,
        cpus=cpus,
        node_bytes=int(group.memory or device.node_memory * part),
        price_per_hour=group.price_per_hour,
        hours_between_failures=group.hours_between_failures,
        start_seconds=group.start_seconds,
    )


def _unique(groups: list[Group]) -> list[Group]:
    """Return the groups under names that differ."""
    names = [group.name for group in groups]
    taken, found = {name for name in names if names.count(name) == 1}, []
    for group in groups:
        name, numbers = group.name, itertools.count(1)
        while names.count(group.name) > 1 and (name == group.name or name in taken):
            name = f"{group.name}-{next(numbers)}"
        taken.add(name)
        found.append(replace(group, name=name))
    return found


def _read(spec: str) -> ClusterConfig:
    path = Path(spec)
    if path.is_file():
        return _checked(parse_yaml(read_text(path), spec), spec)
    if spec in cluster_names():
        text = (resources.files("ntkpipe.configs") / "clusters" / f"{spec}.yaml").read_text("utf-8")
        return _checked(parse_yaml(text, spec), spec)
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"cluster file {spec} does not exist.")
    return _checked(_short(spec), f"cluster {spec!r}")


def _short(spec: str) -> dict[str, Any]:
    """Return what a text such as ``4xcpu,2x8xh100@s3`` means."""
    text, at, storage = spec.partition("@")
    groups = []
    for part in text.split(","):
        match = _SHORT.match(part.strip())
        if match is None:
            hint = "" if "x" in part else f" {unknown_name('cluster', part, cluster_names())}."
            raise ConfigError(
                f"cluster {spec!r}: {part.strip()!r} is not of the form NODESxDEVICE, such as 8xh100 or 2x8xh100.{hint} "
                "Or give a YAML file."
            )
        found: dict[str, Any] = {"nodes": int(match["nodes"]), "device": match["device"].lower()}
        if match["devices"]:
            found["devices_per_node"] = int(match["devices"])
        groups.append(found)
    return {"name": spec, "groups": groups} | ({"storage": storage} if at else {})


def _checked(document: Any, origin: str) -> ClusterConfig:
    if not isinstance(document, dict):
        raise ConfigError(f"{origin}: expected a mapping with keys such as 'groups' and 'storage', found {document!r}.")
    try:
        return ClusterConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(describe_findings(origin, error, what="cluster")) from None
