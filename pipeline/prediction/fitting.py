"""Whether a job fits a described cluster, and the nearest setting with which it does."""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, final

from ntkpipe.configs.described import Cluster, Group
from ntkpipe.configs.errors import ConfigError, PlanError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.solve.auto import AutoSolve
from ntkpipe.configs.units import size
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.storage.schema import stored_bytes
from ntkpipe.workers.probing.solvers import run_problem
from ntkpipe.workers.solvers.choice import choose
from ntkpipe.workers.solvers.prediction import Machine, predict

MIB: Final = 2**20

SHARED_FIELDS: Final = ("name", "kernel", "ridge", "ridge_scale", "targets", "class_weight")
"""Of all solvers, which ``auto`` takes over from another one."""


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """A change with which a job fits; any larger value would not do, where there are larger ones."""

    key: str
    """Of the configuration, or ``workers_per_node`` or ``samples``."""
    value: str
    others: tuple[str, ...] = ()
    """Settings of the configuration that it needs besides, as KEY=VALUE."""

    @property
    def assignments(self) -> tuple[str, ...]:
        """KEY=VALUE of all settings."""
        return (f"{self.key}={self.value}", *self.others)

    @property
    def text(self) -> str:
        """As a person is told."""
        if self.key == "samples":
            return f"--samples {self.value} at the most"
        if self.key == "workers_per_node":
            return f"workers_per_node: {self.value} in the description of the cluster"
        return " ".join(f"--set {shlex.quote(text)}" for text in self.assignments)


@final
@dataclass(frozen=True, slots=True)
class Misfit:
    """Something that does not fit, and what helps; each setting on its own."""

    text: str
    settings: tuple[Setting, ...]
    hinders_times: bool = False
    """Whether nothing can be said of times: not even one sample fits."""

    @property
    def message(self) -> str:
        """As a person is told."""
        if not self.settings:
            return f"{self.text} No setting of this job helps: describe other nodes or another storage."
        return f"{self.text} What fits: {'; or '.join(setting.text for setting in self.settings)}."


def check_fit(workload: Workload, cluster: Cluster) -> None:
    """Refuse a job that does not fit a cluster.

    Raises:
        PlanError: Says what is needed, what there is, and the nearest settings that fit.
    """
    found = misfits(workload, cluster)
    if found:
        raise PlanError(
            "\n  ".join([f"the job does not fit cluster {cluster.name}:", *(each.message for each in found)])
        )


def misfits(workload: Workload, cluster: Cluster) -> list[Misfit]:
    """Return everything that does not fit; empty if a job fits."""
    parts = (_memory(workload, cluster), *_solves(workload, cluster), _storage(workload, cluster))
    return [part for part in parts if part is not None]


def largest(accepts: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return a number that is accepted while the next one is not, from ``low`` up to below ``high``; None without one.

    Args:
        accepts: Tells whether a number is accepted.
        low: The least that may be.
        high: One that is not accepted.
    """
    if low >= high or not accepts(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if accepts(middle):
            low = middle
        else:
            high = middle
    return low


def _peak(workload: Workload, allowed_bytes: int, group: Group) -> int | None:
    """Return the predicted peak of a worker that may take so much; None if not even one sample fits into that."""
    try:
        return workload.passes(allowed_bytes, on_cpu=group.device.kind == "cpu")[1].peak_bytes
    except PlanError:
        return None


def _memory(workload: Workload, cluster: Cluster) -> Misfit | None:
    """Compare a worker's predicted peak with its memory in the group where that is least."""
    allowed = int(workload.config.resources.max_worker_bytes)

    def fits(group: Group, allowed_bytes: int, job: Workload = workload) -> bool:
        peak = _peak(job, allowed_bytes, group)
        return peak is not None and peak <= group.worker_bytes

    tight = [group for group in cluster.groups if not fits(group, allowed)]
    if not tight:
        return None
    group = min(tight, key=lambda each: each.worker_bytes)
    needed = _peak(workload, allowed, group)
    settings = []
    budget = largest(lambda mib: fits(group, mib * MIB), _least_mib(workload), allowed // MIB + 1)
    if budget is not None:
        settings.append(Setting("resources.max_worker_bytes", f"{budget}MiB"))
    workers = largest(lambda num: fits(group.with_workers(num), allowed), 1, group.workers_per_node)
    if workers is not None and len(tight) == 1:
        settings.append(Setting("workers_per_node", str(workers)))
    if not settings:
        settings += _smaller_blocks(workload, group)
    return Misfit(
        f"a worker of group {group.name!r} is predicted to take {size(needed or workload.least_bytes)}, and has "
        f"{size(group.worker_bytes)} ({group.workers_per_node} on a node).",
        tuple(settings),
        hinders_times=needed is None,
    )


def _least_mib(workload: Workload) -> int:
    return -(-workload.least_bytes // MIB)


def _smaller_blocks(workload: Workload, group: Group) -> Iterator[Setting]:
    """Yield smaller chunks with which a sample at a time fits; batches are then to be cut for that memory too."""
    geometry = workload.geometry

    def fits(rows: int) -> bool:
        job = workload.with_geometry(block_rows=rows, shard_rows=min(rows, geometry.shard_rows))
        return job.least_bytes <= group.worker_bytes // MIB * MIB

    rows = largest(fits, 1, geometry.block_rows)
    if rows is not None:
        others = [f"resources.max_worker_bytes={group.worker_bytes // MIB}MiB"]
        others += [f"store.shard_rows={rows}"] if rows < geometry.shard_rows else []
        yield Setting("store.block_rows", str(rows), tuple(others))


def _solves(workload: Workload, cluster: Cluster) -> Iterator[Misfit]:
    """Compare what each solver is predicted to take with the memory of the largest workers."""
    memory = max(group.worker_bytes for group in cluster.groups)
    budget = Machine(float(min(memory, int(workload.config.resources.max_worker_bytes))))
    for index, solve in enumerate(workload.config.solve):
        problem = run_problem(solve, workload.geometry, workload.sample_size)
        needed = predict(solve, problem, Machine(memory)).memory_bytes
        if needed <= memory:
            continue
        auto = {"kind": "auto"} | {name: getattr(solve, name) for name in SHARED_FIELDS}
        settings: tuple[Setting, ...] = ()
        with suppress(PlanError):
            choose(AutoSolve.model_validate(auto), problem, budget)
            settings = (Setting(f"solve.{index}", json.dumps(auto)),)
        yield Misfit(
            f"solution {solve.name!r} by {solve.kind} is predicted to take {size(int(needed))} on one worker; the largest "
            f"has {size(memory)}.",
            settings,
        )


def _storage(workload: Workload, cluster: Cluster) -> Misfit | None:
    """Compare what is stored with the capacity."""
    capacity = cluster.storage.capacity
    if capacity is None or stored_bytes(workload.geometry) <= capacity:
        return None
    geometry, limit = workload.geometry, int(capacity)

    def fits(job: Workload) -> bool:
        return stored_bytes(job.geometry) <= limit

    settings: list[Setting] = []
    if geometry.dtype == "float64" and fits(workload.with_geometry(dtype="float32")):
        settings.append(Setting("store.dtype", "float32"))
    if geometry.pairs and fits(workload.with_geometry(pairs=())) and _allows_no_pairs(workload.config):
        settings.append(Setting("data.pairs", "[]"))
    dim = _largest_dim(workload, fits)
    if dim is not None:
        settings.append(Setting("projection.dim", str(dim)))
    split = max(geometry.splits, key=lambda name: geometry.splits[name].num_samples)
    most = geometry.splits[split].num_samples
    fewer = largest(lambda num: fits(workload.resized({split: num})), 1, most)
    if fewer is not None:
        settings.append(Setting("samples", f"{split}={fewer}"))
    return Misfit(
        f"the run stores {size(stored_bytes(geometry))}, and storage {cluster.storage_name!r} has room for "
        f"{size(limit)}.",
        tuple(settings),
    )


def _allows_no_pairs(config: RunConfig) -> bool:
    """Return whether nothing in a configuration needs a stored kernel matrix."""
    document = config.document()
    document["data"] = document["data"] | {"pairs": []}
    try:
        load_config(document, stored=True)
    except ConfigError:
        return False
    return True


def _largest_dim(workload: Workload, fits: Callable[[Workload], bool]) -> int | None:
    """Return the largest dimension of the projection with which a run fits; None if it does not help."""
    projection = workload.config.projection
    if projection.resolved_kind == "none":
        return None
    step = 2 * projection.nonzeros if projection.resolved_kind == "sjlt" else 2

    def accepts(steps: int) -> bool:
        try:
            return fits(workload.with_dim(step * steps))
        except ValueError:  # not a dimension that the projection can have
            return False

    steps = largest(accepts, 1, projection.resolved_dim // step)
    return None if steps is None else step * steps
