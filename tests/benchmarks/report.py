"""Results as tables for a terminal or a Markdown file, and as plain data."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.jobs import ErrorSummary
from benchmarks.measure import Machine
from benchmarks.suite import Alternative, JobResult, WorkloadResult

Machines = tuple[Machine, Machine]
"""The machine before and after."""

NOTES = (
    "Medians over the repeats; machines are shared, so compare ratios.",
    "total: the whole call on N samples. set-up: the same call on a few samples, mostly the preparation of the model.",
    "net: the difference of the two, scaled from the samples between them to all N; ~ where set-up is more than half of total.",
    "floor: forward and data-only backward passes (C for trNTK, 1 for pNTK), timed in turn with the calls.",
    "Errors are differences from the exact kernel in units of cosines: root mean square, then the largest.",
    "In brackets: the root mean square of a dense random projection to the same K.",
)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table as text."""

    title: str
    """What it shows."""
    header: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[str, ...], ...]
    """One tuple of cells for each row."""


def grids(results: Sequence[WorkloadResult]) -> list[Grid]:
    """Return two tables for each workload: the jobs, and other ways to the same results."""
    header = ("job", "total", "set-up", "floor", "total / floor", "net / floor", "peak memory")
    errors = ("error off diagonal", "error on diagonal")
    found = []
    for result in results:
        title = (
            f"{result.title}: N = {result.num_samples}, P = {result.num_parameters:,}, C = {result.num_outputs} "
            f"(floor in batches of {result.floor_batch_size})"
        )
        found.append(Grid(title, header + errors, tuple(_job_row(job) for job in result.jobs)))
        others = ("other ways", "does", "time", "times ntkpipe's total", "how measured")
        if result.alternatives:
            found.append(Grid(result.title, others, tuple(_alternative_row(other) for other in result.alternatives)))
    return found


def facts(before: Machine, after: Machine) -> str:
    """Return the machine in one line, with its load before and after."""
    return (
        f"ntkpipe {before.ntkpipe}, torch {before.torch}, Python {before.python}; {before.processor}, "
        f"{before.num_processors} CPUs, {before.num_threads} threads, {before.memory_bytes / 2**30:.0f} GiB, "
        f"load {before.load:.2f} before and {after.load:.2f} after; device {before.device}"
    )


def print_tables(machines: Machines, results: Sequence[WorkloadResult]) -> None:
    """Print for a terminal."""
    print_grids(grids(results), (facts(*machines), *NOTES))


def print_grids(found: Sequence[Grid], lines: Sequence[str]) -> None:
    """Print tables, and lines below them, for a terminal."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for grid in found:
        table = Table(title=grid.title, title_justify="left")
        for name in grid.header:
            table.add_column(name)
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)
    for line in lines:
        console.print(line, highlight=False, markup=False)


def markdown(machines: Machines, results: Sequence[WorkloadResult]) -> str:
    """Return the same for a Markdown file."""
    return markdown_grids(grids(results), facts(*machines), NOTES)


def markdown_grids(found: Sequence[Grid], line: str, notes: Sequence[str]) -> str:
    """Return tables, a line and notes for a Markdown file."""
    lines = []
    for grid in found:
        lines += [f"**{grid.title}**", ""]
        lines += [_markdown_row(row) for row in (grid.header, ("---",) * len(grid.header), *grid.rows)]
        lines += [""]
    return "\n".join([*lines, line, "", *(f"* {note}" for note in notes)])


def as_data(machines: Machines, results: Sequence[WorkloadResult]) -> dict[str, Any]:
    """Return everything that was measured, every repeat of it, with the derived figures."""
    workloads = [asdict(result) for result in results]
    for workload, result in zip(workloads, results, strict=True):
        for data, job in zip(workload["jobs"], result.jobs, strict=True):
            data.update(
                ratio=job.ratio, net_seconds=job.net_seconds, net_ratio=job.net_ratio, net_is_rough=job.net_is_rough
            )
    return {"before": asdict(machines[0]), "after": asdict(machines[1]), "workloads": workloads, "notes": list(NOTES)}


def _job_row(job: JobResult) -> tuple[str, ...]:
    errors = (job.error.off_diagonal, job.error.diagonal) if job.error else (None, None)
    return (
        job.name,
        *(f"{timing.median:.3g} s" for timing in (job.total, job.setup, job.floor)),
        f"{job.ratio:.3g}",
        f"{'~' if job.net_is_rough else ''}{job.net_ratio:.3g}",
        "-" if job.peak_bytes is None else f"{job.peak_bytes / 2**20:,.0f} MiB",
        *(_error(error) for error in errors),
    )


def _alternative_row(other: Alternative) -> tuple[str, ...]:
    time = "-" if other.seconds is None else f"{other.seconds:.3g} s (extrapolated)"
    speedup = "-" if other.speedup is None else f"{other.speedup:.3g}"
    return other.name, other.job, time, speedup, other.note


def _error(error: ErrorSummary | None) -> str:
    return "-" if error is None else f"{error.rms:.4f} ({error.predicted_rms:.4f}), max {error.largest:.3f}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
