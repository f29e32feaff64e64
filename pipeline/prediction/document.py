"""A plan as JSON values."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ntkpipe.pipeline.plan import StagePrice
from ntkpipe.pipeline.prediction.fitting import Misfit
from ntkpipe.pipeline.prediction.forecast import Forecast
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.storage.schema import stored_bytes


def plan_document(workload: Workload, found: Forecast | None, problems: Sequence[Misfit]) -> dict[str, Any]:
    """Return a plan, what a cluster would take for it, and what does not fit, as plain values.

    Args:
        workload: The job.
        found: On a cluster; None without one, or where nothing can be said of times.
        problems: Of that cluster.
    """
    made, resources = workload.plan(), workload.config.resources
    passes, memory = workload.passes(int(resources.max_worker_bytes), on_cpu=resources.on_cpu)
    return {
        "name": workload.config.name,
        "stages": [_stage(price) for price in made.prices()],
        "samples": {name: split.num_samples for name, split in workload.geometry.splits.items()},
        "parameters": workload.num_parameters,
        "stored_bytes": stored_bytes(workload.geometry),
        "worker_bytes": {"features": memory.features_bytes, "kernel": memory.kernel_bytes},
        "passes": asdict(passes),
        "routes": {
            kernel: {name: choice.way for name, choice in choices.items()}
            for kernel, choices in workload.probe.choices.items()
        },
        "projections": {
            kernel.label: {"kind": projection.resolved_kind, "dim": projection.resolved_dim}
            for kernel in workload.config.model_kernels
            if (projection := workload.config.projection_of(kernel)).resolved_kind != "none"
        },
        "solvers": {name: choice.section.kind for name, choice in workload.solvers.items()},
        "cluster": None if found is None else _forecast(found),
        "problems": [
            {"text": problem.text, "settings": [setting.text for setting in problem.settings]} for problem in problems
        ],
    }


def _stage(price: StagePrice) -> dict[str, Any]:
    cost = price.cost
    return {
        "stage": price.stage,
        "tasks": price.num_tasks,
        "flops": cost.flops,
        "bytes_read": cost.bytes_read,
        "bytes_written": cost.bytes_written,
    }


def _forecast(found: Forecast) -> dict[str, Any]:
    cluster = found.cluster
    return {
        "name": cluster.name,
        "nodes": cluster.num_nodes,
        "workers": cluster.num_workers,
        "storage": cluster.storage_name,
        "basis": found.measured,
        "seconds": found.seconds,
        "price": found.price,
        "month_price": found.month_price,
        "worker_bytes": found.worker_bytes,
        "stages": [
            {
                "stage": stage.stage,
                "tasks": stage.num_tasks,
                "seconds": stage.seconds,
                "bound": stage.bound,
                "task_seconds": stage.task_seconds,
                "start_seconds": stage.start_seconds,
                "worker_seconds": stage.worker_seconds,
                "storage_seconds": stage.storage_seconds,
                "driver_seconds": stage.driver_seconds,
                "bytes_read": stage.cost.bytes_read,
                "bytes_written": stage.cost.bytes_written,
                "reads": stage.num_reads,
                "writes": stage.num_writes,
            }
            for stage in found.stages
        ],
    }
