"""Measures all solvers of a problem, each in a process of its own, in turn."""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Timing
from benchmarks.solver_list import missing, solver_jobs
from benchmarks.solver_problems import Problem, prepare
from benchmarks.solver_process import JobFailed, Measured, in_own_process


@dataclass(frozen=True, slots=True)
class SolverResult:
    """What became of one job."""

    name: str
    """The job."""
    is_floor: bool
    """Whether others are compared with it."""
    rounds: tuple[Measured, ...]
    """As many as it was measured; none if it could not be."""
    failure: str
    """Why there is none, or fewer than the others."""

    @property
    def total(self) -> Timing:
        """The whole call, each time."""
        return Timing(tuple(measured.seconds for measured in self.rounds))


@dataclass(frozen=True, slots=True)
class ProblemResult:
    """All solvers of one problem."""

    problem: str
    """Its name."""
    title: str
    """What the report calls it."""
    error: str
    """How test predictions are judged."""
    num_samples: int
    """N."""
    kernel_seconds: float | None
    """What computing the kernel took, or computing and storing it; None of features."""
    results: tuple[SolverResult, ...]
    """In the order of the report."""

    def ratio(self, result: SolverResult) -> float | None:
        """Return a job's time over the floor's."""
        floors = [other for other in self.results if other.is_floor and other.rounds]
        return result.total.median / floors[0].total.median if floors and result.rounds else None


def measure_problem(
    problem: Problem,
    num_samples: int,
    folder: Path,
    *,
    repeats: int,
    with_peers: bool,
    threads: int,
    timeout_seconds: float,
) -> ProblemResult:
    """Prepare a problem in a folder and measure its jobs in rounds, so that a slow minute meets all of them.

    A job that fails is not tried again, and is reported with its reason.

    Raises:
        WorkloadUnavailable: The data are not installed.
    """
    _say(f"{problem.title}: preparing {num_samples} samples")
    prepared = prepare(problem, num_samples, folder)
    jobs = solver_jobs(problem, with_peers)
    rounds: dict[str, list[Measured]] = {job.name: [] for job in jobs}
    failures = {job.name: f"not installed: {', '.join(absent)}" for job in jobs if (absent := missing(job))}
    for number in range(repeats):
        for job in jobs:
            if job.name in failures:
                continue
            _say(f"{problem.title}: {job.name}, round {number + 1}")
            try:
                rounds[job.name].append(in_own_process(folder, job.name, threads, timeout_seconds))
                _say(f"  {rounds[job.name][-1].seconds:.3g} s")
            except JobFailed as error:
                failures[job.name] = f"failed: {error}"
                _say(f"  {failures[job.name]}")
    results = [
        SolverResult(job.name, job.is_floor, tuple(rounds[job.name]), failures.get(job.name, "")) for job in jobs
    ]
    return ProblemResult(
        problem.name,
        problem.title,
        problem.error,
        prepared.num_samples,
        prepared.kernel_seconds,
        tuple(results),
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
