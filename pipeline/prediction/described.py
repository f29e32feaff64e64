"""Which cluster a prediction is for, from what was given on the command line."""

from collections.abc import Callable, Sequence

from ntkpipe.configs.calibration import THIS, Calibration, load_calibration
from ntkpipe.configs.cluster import Catalogue, ClusterConfig, NodeGroup
from ntkpipe.configs.described import Cluster, load_catalogue, load_cluster
from ntkpipe.configs.resources import ResourcesConfig


def described_cluster(
    spec: str | None, calibration: str | None, catalogue: Sequence[str] = ()
) -> tuple[Calibration | None, Callable[[ResourcesConfig], Cluster] | None]:
    """Return what was measured, and the cluster as a function of a job's resources.

    Args:
        spec: Of the cluster; None takes the machine that was measured, with the workers of the job.
        calibration: File with measurements; None for none. Its machine and store are called ``this``.
        catalogue: Files with more devices and storages.

    Returns:
        The measurements, and the cluster; None each for what is not known.

    Raises:
        ConfigError: A file or the description is not acceptable.
    """
    measured = load_calibration(calibration) if calibration is not None else None
    known = load_catalogue(*catalogue)
    if measured is not None:
        known = known.joined(measured.catalogue)
    if spec is not None:
        found = load_cluster(spec, known)
        return measured, lambda resources: found
    if measured is None:
        return None, None
    return measured, lambda resources: this_machine(measured, resources, known)


def this_machine(calibration: Calibration, resources: ResourcesConfig, catalogue: Catalogue | None = None) -> Cluster:
    """Return the machine that was measured, with the workers of a job.

    Args:
        calibration: What was measured.
        resources: Of the job.
        catalogue: With the storage, where none was measured.
    """
    threads = resources.threads_per_worker
    # More threads than cores make no machine faster.
    cpus = None if threads is None else min(threads * resources.num_workers, calibration.device.node_cpus)
    group = NodeGroup(nodes=1, device=THIS, workers_per_node=resources.num_workers, cpus=cpus)
    storage = THIS if calibration.storage is not None else "local-disk"
    known = (catalogue or load_catalogue()).joined(calibration.catalogue)
    return load_cluster(ClusterConfig(name="of this machine", groups=(group,), storage=storage), known)
