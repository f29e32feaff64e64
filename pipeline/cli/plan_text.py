"""What plan prints: tasks and prices, kernels and their ways, and what a described cluster would take."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from ntkpipe.configs.kernels.names import CLOSED_FORMS, RANDOM_FEATURES
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.units import duration, size
from ntkpipe.pipeline.cli.terminal import cell, say
from ntkpipe.pipeline.prediction.forecast import Forecast
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.storage.records import KernelGeometry
from ntkpipe.storage.schema import stored_bytes


def print_plan(console: Console, workload: Workload, *, explain: bool = False) -> None:
    """Print the stages of a job and their prices, and how its kernels are computed."""
    made, probe = workload.plan(), workload.probe
    table = Table("stage", "tasks", "FLOPs", "read", "written", title=f"Plan of {made.config.name}")
    for column in table.columns[1:]:
        column.justify = "right"
    for price in made.prices():
        cost = price.cost
        table.add_row(
            price.stage,
            f"{price.num_tasks:,}",
            f"{float(cost.flops):.2e}",
            size(cost.bytes_read),
            size(cost.bytes_written),
        )
    console.print(table)
    for name, split in made.geometry.splits.items():
        _line(console, f"split {name}", f"{split.num_samples:,} samples, labels: {split.labels}")
    for kernel in made.geometry.kernels:
        _line(console, f"kernel {kernel.name}", f"{kernel.kind}, {_described(made.config, kernel)}")
    for name, choice in workload.solvers.items():
        _print_solver(console, name, choice)
    _line(console, "storage", size(stored_bytes(made.geometry)))
    _print_resources(console, workload)
    if probe.gradient is not None and not probe.gradient.passed:
        _line(
            console,
            "gradient",
            f"PSEUDO: the backward pass differs from the derivative by {100 * probe.gradient.error:.2g} %",
        )
    _print_coverage(console, probe, explain=explain)


def _print_resources(console: Console, workload: Workload) -> None:
    """Say what works, and with how much memory."""
    resources = workload.config.resources
    passes, memory = workload.passes(int(resources.max_worker_bytes), on_cpu=resources.on_cpu)
    workers = "in this process" if resources.executor == "serial" else f"{resources.num_workers} Ray workers"
    _line(
        console,
        "executor",
        f"{workers}, batches of {passes.batch_size}, up to {passes.max_vectors} output vectors in a pass",
    )
    _line(
        console,
        "memory of a worker",
        f"features {size(memory.features_bytes)}, kernel {size(memory.kernel_bytes)} predicted, "
        f"{size(int(resources.max_worker_bytes))} allowed",
    )


def print_forecast(console: Console, found: Forecast) -> None:
    """Print what a cluster would take for each stage, and altogether."""
    cluster = found.cluster
    table = Table(
        "stage", "a task", "start", "workers", "storage", "driver", "time", title=cell(f"On cluster {cluster.name}")
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in found.stages:
        parts = (
            stage.task_seconds,
            stage.start_seconds,
            stage.worker_seconds,
            stage.storage_seconds,
            stage.driver_seconds,
            stage.seconds,
        )
        table.add_row(stage.stage, *(duration(part) for part in parts))
    console.print(table)
    for group in cluster.groups:
        share = "" if group.device.kind == "cpu" else f", {group.devices_per_node} on a node"
        _line(
            console,
            f"group {group.name}",
            f"{group.nodes:,} nodes, {group.num_workers:,} workers on {group.device_name}{share}; "
            f"{size(group.worker_bytes)} of memory each, {size(found.worker_bytes)} predicted; "
            f"rates: {group.device.source}",
        )
    _line(console, f"storage {cluster.storage_name}", f"{size(found.stored_bytes)}; rates: {cluster.storage.source}")
    _line(console, "time", f"about {duration(found.seconds)}, by formula ({found.measured})")
    if found.price or found.month_price:
        run = f"{found.price:,.2f} for the run" if cluster.has_prices else "of the nodes is not known"
        _line(console, "price", f"{run}, {found.month_price:,.2f} a month for what is stored")


def _described(config: RunConfig, kernel: KernelGeometry) -> str:
    """Say which map a kernel is estimated with, how large its error is, and why it was picked."""
    if kernel.derived is not None:
        text = f"of {', '.join(kernel.parents)}, computed as it is read"
        if kernel.statistic_dim is None:
            return text
        numbers = "number" if kernel.statistic_dim == 1 else "numbers"
        return f"{text}; {kernel.statistic_dim:,} {numbers} stored per sample"
    if kernel.kind in CLOSED_FORMS:
        return "a formula"
    if kernel.feature_dim is not None and kernel.kind in RANDOM_FEATURES:
        return f"estimated from {kernel.feature_dim:,} random features"
    projection = config.projection_of(config.kernel(kernel.name))
    if projection.resolved_kind == "none":
        return "exact"
    text = f"{projection.resolved_kind}, K = {projection.resolved_dim:,}"
    if projection.predicted_error is not None:
        text += f", error of a cosine at most {projection.predicted_error:.3g} (root mean square)"
    if projection.kind == "auto":
        text += "; chosen by auto: as accurate as dense signs, in the faster of two ways for each parameter"
    return text


def _print_solver(console: Console, name: str, choice: Any) -> None:
    """Say what a solution is found with, and what was weighed where ntkpipe chose."""
    _line(console, f"solution {name}", choice.why or f"{choice.section.kind}, as configured")
    for candidate in choice.candidates:
        _line(
            console,
            f"  {candidate.kind}",
            f"{duration(candidate.seconds)}, {candidate.passes:.1f} passes, {size(candidate.bytes_read)} read, "
            f"{size(candidate.memory_bytes)} of memory",
        )


def _print_coverage(console: Console, probe: Any, *, explain: bool) -> None:
    """Say by which route each parameter's gradients are computed, and how each kernel uses them."""
    table = Table("parameter", "shape", "size", "route", title=f"{probe.num_parameters:,} parameters")
    table.columns[2].justify = "right"
    for route in probe.routes:
        shape = " x ".join(map(str, route.shape)) or "scalar"
        table.add_row(route.name, shape, f"{route.numel:,}", route.description)
    console.print(table)
    for kernel, choices in probe.choices.items():
        taken = Counter(choice.way for choice in choices.values())
        ways = ", ".join(f"{num} by {way}" for way, num in taken.most_common())
        total = sum(choice.seconds for choice in choices.values())
        unit = "sample" if kernel in probe.projected else "pair of samples"
        _line(console, f"kernel {kernel}", f"parameters {ways}; predicted {duration(total)} for a {unit}")
    if explain:
        for kernel, choices in probe.choices.items():
            _print_choices(console, kernel, choices)


def _print_choices(console: Console, kernel: str, choices: Any) -> None:
    """Print how a kernel handles each parameter, beside the predicted time of what it does not do."""
    table = Table("parameter", "taken", "time", "instead of", title=f"Ways of kernel {kernel}")
    for name, choice in choices.items():
        others = ", ".join(f"{way} {duration(seconds)}" for way, seconds in choice.others.items())
        table.add_row(name, choice.way, duration(choice.seconds), others)
    console.print(table)


def _line(console: Console, name: str, text: str) -> None:
    say(console, f"{name}: {text}")
