"""Measures this machine, a store, and a few tasks of a job, for predictions."""

import math
import os
import platform
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Final

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.cluster import DeviceConfig, StorageConfig
from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.execution import make_plan
from ntkpipe.pipeline.prediction.described import this_machine
from ntkpipe.pipeline.prediction.durations import Durations
from ntkpipe.pipeline.prediction.sampling import Sample
from ntkpipe.pipeline.prediction.storage_speed import measure_storage
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.calibration import device_bytes, measure_figures
from ntkpipe.workers.probing.probe import Probe, probe_run

LONGEST_SECONDS: Final = 1.5
"""A task that is predicted to take longer is made smaller: fewer samples, in batches of the same size."""


def calibrate(
    *, device: str = "cpu", config: RunConfig | None = None, store: AbstractStore | None = None, now: str = ""
) -> Calibration:
    """Measure this machine, and where they are given a store and tasks of a job; about ten seconds, and a job's probe.

    Tasks are timed on as many workers side by side as the job has, for they share caches and memory. They write to a
    scratch run in the store, or in a temporary folder, which is removed.

    Args:
        device: A PyTorch device.
        config: Of the job.
        store: Where runs will live.
        now: Date and time, for the record.

    Raises:
        NtkPipeError: The job cannot be planned, a task fails, or the store cannot be used.
    """
    whole, single = measure_device(device)
    speed = measure_storage(store) if store is not None else None
    found = Calibration(
        measured_at=now or time.strftime("%Y-%m-%d %H:%M:%S"),
        versions={"python": platform.python_version(), "cores": str(whole.node_cpus)},
        device=whole,
        single=single,
        storage=speed,
    )
    return found if config is None else _with_job(found, config, store, device)


def measure_device(device: str) -> tuple[DeviceConfig, DeviceConfig | None]:
    """Measure this machine with all cores, and with one thread; or its GPU.

    Raises:
        ConfigError: This machine has no such device.
    """
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    source = {"source": "measured on this machine", "measured": True}
    node = {"node_cpus": cores, "node_memory": memory}
    if device != "cpu":
        card = {"kind": "gpu", "memory": device_bytes(device)}
        return DeviceConfig.model_validate(source | card | node | _figures(device)), None
    both = (cores, 1)
    sets = [{"kind": "cpu", "cores": threads} | _figures(device, threads) for threads in both]
    whole, single = (DeviceConfig.model_validate(source | node | part) for part in sets)
    return whole, single


def _figures(device: str, threads: int | None = None) -> dict[str, float]:
    return {name: float(f"{value:.3g}") for name, value in asdict(measure_figures(device, threads)).items()}


def _with_job(found: Calibration, config: RunConfig, store: AbstractStore | None, device: str) -> Calibration:
    """Time tasks of a job on its workers."""
    resources = config.resources.model_copy(update={"device": device})
    config = config.model_copy(update={"resources": resources})
    num_workers, threads = resources.num_workers, resources.threads_per_worker
    if threads is None and num_workers > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // num_workers)
    # Of the same machine as predictions for it are made: what workers take from each other is counted once.
    share = this_machine(found, resources).groups[0].share
    with _scratch(store) as place:
        speed = found.storage or measure_storage(place)
        probe = _small_enough(config, found.device, share, speed)
        durations = Durations(Workload.of(probe), found.device, share, speed)
        sample = Sample(place, make_plan(probe), probe, num_workers, threads)
        start, stages = sample.measure(durations)
    return found.model_copy(
        update={
            "storage": speed,
            "job": config.name,
            "job_digest": Workload.of(probe).kernels_digest,
            "workers": num_workers,
            "threads": threads,
            "worker_start_seconds": start,
            "stages": stages,
        }
    )


@contextmanager
def _scratch(store: AbstractStore | None) -> Iterator[AbstractStore]:
    """Give a place for a run that is removed again."""
    if store is None or isinstance(store, LocalRunStore):
        where = store.root if store is not None else None
        if where is not None:
            where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="calibration-", dir=where) as folder:
            yield open_store(folder)
        return
    if not store.shared:
        raise ConfigError(f"{store.url} exists in this process only; workers need another --store.")
    place = open_store(f"{store.url.rstrip('/')}/calibration-{uuid.uuid4().hex[:12]}")
    try:
        yield place
    finally:
        place.delete_many(place.names(""))


def _small_enough(config: RunConfig, device: DeviceConfig, share: float, storage: StorageConfig) -> Probe:
    """Look at a job whose tasks are cut so that each takes a second or two."""
    probe = probe_run(config)
    durations, rows = Durations(Workload.of(probe), device, share, storage), {}
    for stage, key in ((FEATURES_STAGE, "shard_rows"), (KERNEL_STAGE, "block_rows")):
        longest = max((durations.times(task).compute for task, _ in make_plan(probe).shapes(stage)), default=0.0)
        if longest > LONGEST_SECONDS:
            # Blocks take as long as their area, or as their sides where factors are what takes the time.
            halvings = math.ceil(math.log2(longest / LONGEST_SECONDS))
            rows[key] = max(probe.passes.batch_size, getattr(config.store, key) >> halvings)
    if not rows:
        return probe
    return probe_run(config.model_copy(update={"store": config.store.model_copy(update=rows)}))
