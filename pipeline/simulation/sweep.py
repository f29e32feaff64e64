"""The same run on more and more nodes, as rows of numbers."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.described import Cluster
from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.simulation.chance import Chance
from ntkpipe.pipeline.simulation.simulate import Simulated, scene_of, simulate

MAX_NODES: Final = 100_000
"""Each of them, and of its workers, is an object with a future of its own."""

SLOWEST: Final = 0.99
"""Quantile from which on a task is among the slowest 1 %."""


def sweep(
    workload: Workload,
    cluster: Cluster,
    nodes: Sequence[int],
    calibration: Calibration | None,
    chance: Chance,
    seed: int,
) -> Iterator[Simulated]:
    """Simulate a job on clusters of other sizes; groups of nodes keep their proportions.

    Args:
        workload: The job.
        cluster: Of the first size; none takes it as it is.
        nodes: Numbers of nodes.
        calibration: What was measured; None for nominal rates.
        chance: What goes wrong.
        seed: Of all random numbers.

    Raises:
        ConfigError: A number of nodes is below that of the groups, or above 100,000.
        PlanError: A single sample does not fit the memory that the job allows a worker.
    """
    for num in nodes or [cluster.num_nodes]:
        if num > MAX_NODES:
            raise ConfigError(
                f"{num:,} nodes are too many to be simulated one by one; at most {MAX_NODES:,} are. `ntkpipe plan --cluster` "
                "predicts by formula, for any number."
            )
        if num < len(cluster.groups):
            raise ConfigError(
                f"cluster {cluster.name!r} has {len(cluster.groups)} groups of nodes, which take at least as many nodes; "
                f"found --nodes {num}."
            )
        yield simulate(scene_of(workload, cluster.resized(num), calibration, chance, seed))


def rows(found: Sequence[Simulated]) -> list[dict[str, Any]]:
    """Return what was simulated as plain values; speed-up and efficiency are measured by the first one."""
    if not found:
        return []
    first = found[0]
    return [_row(one, first) for one in found]


def document(workload: Workload, found: Sequence[Simulated], seed: int) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "name": workload.config.name,
        "samples": {name: split.num_samples for name, split in workload.geometry.splits.items()},
        "seed": seed,
        "sizes": rows(found),
    }


def as_csv(found: Sequence[Simulated]) -> str:
    """Return a table with a line for each number of nodes."""
    table = [
        {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}
        for row in rows(found)
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue()


def _row(one: Simulated, first: Simulated) -> dict[str, Any]:
    speed_up = first.seconds / one.seconds if one.seconds else 0.0
    more = one.cluster.num_workers / first.cluster.num_workers
    main = one.stages.get(one.main_stage)
    total = one.account.total or 1.0
    return {
        "nodes": one.cluster.num_nodes,
        "workers": one.cluster.num_workers,
        "seconds": one.seconds,
        "speed_up": speed_up,
        "efficiency": speed_up / more,
        "utilisation": one.utilisation,
        "tasks": one.num_tasks,
        "median_task_seconds": main.quantile(0.5) if main else 0.0,
        "slowest_task_seconds": main.quantile(SLOWEST) if main else 0.0,
        "retries": one.num_retries,
        "nodes_lost": one.num_nodes_lost,
        "redone": one.num_lost,
        "bytes_read": one.bytes_read,
        "bytes_written": one.bytes_written,
        "requests": round(one.requests),
        "sides_read": one.sides_read,
        "sides_planned": one.sides_planned,
        "driver_share": one.driver_share,
        "price": one.price,
        "bottleneck": one.bottleneck,
        "holes": one.holes,
        "failure": one.failure,
        "stages": {name: times.seconds for name, times in one.stages.items()},
        "worker_time": {name: seconds / total for name, seconds in one.account.parts.items()},
    }
