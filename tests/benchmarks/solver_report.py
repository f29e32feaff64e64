"""Results of solvers as tables."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.measure import Machine
from benchmarks.report import Grid
from benchmarks.solver_process import Measured
from benchmarks.solver_suite import ProblemResult, SolverResult

NOTES = (
    "Medians over the rounds; machines are shared, so compare ratios. Every call has a process of its own, after a small one.",
    "Kernel or features are in memory before the call, unless a note says that the package computes the kernel itself.",
    "residual: of (K + ridge I) alpha = y, relative to y, recomputed in float64 for every solver, the worst target.",
    "passes: as the solver counts them, its own certificate included. memory: growth of the resident set during the call.",
)

FEATURE_NOTES = ("residual of features: of (Phi^T Phi + ridge I) w = Phi^T y, relative to Phi^T y.",)

DISK_NOTES = (
    "From disk: tiles of the lower triangle, dropped from the page cache before every read; no tile is kept in memory.",
    "read: files of tiles that were read. device: what the kernel counts as fetched from the device (/proc/self/io).",
    "predicted: passes times stored bytes, at the rate at which the process has just read all tiles once, in order.",
    "tiles, files: that rate, through the storage layer, and of the same files as they are.",
    "allowed: what the process may allocate beyond its libraries (RLIMIT_DATA). resident: its largest resident set, with them.",
)


def solver_grids(results: Sequence[ProblemResult]) -> list[Grid]:
    """Return a table for each problem, and a second one for kernels from disk."""
    found = []
    for result in results:
        title = f"{result.title}: N = {result.num_samples:,}"
        if result.kernel_seconds is not None:
            title += f" (computing the kernel took {result.kernel_seconds:.3g} s)"
        error = {"classes": "test error", "rmse": "test RMSE"}[result.error]
        header = ("solver", "time", "time / floor", error, "residual", "passes", "memory", "status", "notes")
        found.append(Grid(title, header, tuple(_row(result, one) for one in result.results)))
        cold = [one for one in result.results if one.rounds and one.rounds[0].disk]
        if cold:
            header = ("solver", "time", "predicted", "time / predicted", "stored", "read", "device", "tiles", "files")
            rows = tuple(_disk_row(one) for one in cold)
            found.append(Grid(f"{result.title}: reading", (*header, "allowed", "resident"), rows))
    return found


def notes(results: Sequence[ProblemResult]) -> tuple[str, ...]:
    """Return what explains the tables that there are."""
    cold = any(one.rounds and one.rounds[0].disk for result in results for one in result.results)
    weights = any(result.kernel_seconds is None for result in results)
    return NOTES + (FEATURE_NOTES if weights else ()) + (DISK_NOTES if cold else ())


def solvers_as_data(machines: tuple[Machine, Machine], results: Sequence[ProblemResult]) -> dict[str, Any]:
    """Return everything that was measured, every round of it, with the ratios."""
    problems = [asdict(result) for result in results]
    for data, result in zip(problems, results, strict=True):
        for one, solver in zip(data["results"], result.results, strict=True):
            one["ratio"] = result.ratio(solver)
    before, after = (asdict(machine) for machine in machines)
    return {"before": before, "after": after, "problems": problems, "notes": list(notes(results))}


def predicted_seconds(measured: Measured) -> float:
    """Return what reading takes: passes times stored bytes, at the rate of tiles."""
    assert measured.disk is not None
    assert measured.passes is not None
    return measured.passes * measured.disk.stored_bytes / measured.disk.tiles_per_second


def _row(result: ProblemResult, one: SolverResult) -> tuple[str, ...]:
    if not one.rounds:
        return (one.name, *("-",) * 7, one.failure)
    first, ratio = one.rounds[0], result.ratio(one)
    chose = "" if first.ridge is None else f"ridge {first.ridge:.3g}"
    return (
        one.name,
        f"{one.total.median:.3g} s",
        "-" if ratio is None else f"{ratio:.2f}",
        f"{first.error:.2%}" if result.error == "classes" else f"{first.error:.4f}",
        "-" if first.residual is None else f"{max(each.residual or 0.0 for each in one.rounds):.1e}",
        "-" if first.passes is None else f"{first.passes:.1f}",
        _size(max((each.peak_bytes for each in one.rounds if each.peak_bytes is not None), default=None)),
        first.status or "-",
        "; ".join(filter(None, (chose, first.note, one.failure))),
    )


def _disk_row(one: SolverResult) -> tuple[str, ...]:
    facts = [(each, each.disk) for each in one.rounds if each.disk]
    predicted = statistics.median(predicted_seconds(each) for each, _ in facts)
    disk = facts[0][1]
    return (
        one.name,
        f"{one.total.median:.3g} s",
        f"{predicted:.3g} s",
        f"{statistics.median(each.seconds / predicted_seconds(each) for each, _ in facts):.2f}",
        _size(disk.stored_bytes),
        _size(disk.bytes_read),
        _size(disk.device_bytes),
        f"{_size(int(statistics.median(facts.tiles_per_second for _, facts in facts)))}/s",
        f"{_size(int(statistics.median(facts.files_per_second for _, facts in facts)))}/s",
        _size(disk.allowed_bytes),
        _size(max(facts.resident_bytes for _, facts in facts)),
    )


def _size(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"
