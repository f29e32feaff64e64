"""Runs one job in a process of its own, so that its memory is its own: ``solver_process.py SPECIFICATION RESULT``."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.measure import timed, with_peak_memory
from benchmarks.solver_disk import ColdTiles, DiskFacts, measure_cold
from benchmarks.solver_jobs import Arrays, judge
from benchmarks.solver_list import find_job
from benchmarks.solver_problems import RUN, read_problem
from ntkpipe.workers.operators.blocked import BlockedOperator

CPU = torch.device("cpu")
WARM_ROWS = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """What one call took, and how good its solution is."""

    seconds: float
    """Of the whole call."""
    peak_bytes: int | None
    """Growth of the resident set during the call, where it can be measured."""
    residual: float | None
    """See :class:`benchmarks.solver_jobs.Judged`."""
    error: float
    """See :class:`benchmarks.solver_jobs.Judged`."""
    status: str
    """What the solver says of itself."""
    passes: float | None
    """As the solver counts them."""
    ridge: float | None
    """That it chose."""
    note: str
    """Anything else."""
    disk: DiskFacts | None = None
    """Of a kernel from disk."""


class JobFailed(Exception):
    """A job that ended without a result; says how."""


def in_own_process(folder: Path, name: str, threads: int, timeout_seconds: float) -> Measured:
    """Run a job of the problem that is prepared in a folder.

    Raises:
        JobFailed: It raised, was killed or took too long.
    """
    with tempfile.TemporaryDirectory() as own:
        specification, result = Path(own) / "specification.json", Path(own) / "result.json"
        specification.write_text(json.dumps({"folder": str(folder), "name": name, "threads": threads}))
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        command = [sys.executable, str(Path(__file__).resolve()), str(specification), str(result)]
        try:
            done = subprocess.run(
                command,
                check=False,
                env=os.environ | dict.fromkeys(variables, str(threads)),
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired:
            raise JobFailed(f"not finished after {timeout_seconds:.0f} s") from None
        if done.returncode or not result.exists():
            lines = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
            raise JobFailed(lines[-1][:160])
        found = json.loads(result.read_text())
        return Measured(**found | {"disk": found["disk"] and DiskFacts(**found["disk"])})


def measure(folder: Path, name: str) -> Measured:
    """Measure a job in this process."""
    problem = read_problem(folder)
    job = find_job(problem, name)
    kernel_NN: torch.Tensor | BlockedOperator | None = None
    if problem.kind == "kernel":
        kernel_NN = load(folder, "kernel")
    tiles = ColdTiles(folder / RUN) if problem.kind == "disk" else None
    if tiles is not None:
        kernel_NN = BlockedOperator(tiles)
    # Inputs that only predictions need are mapped: they take no memory before.
    arrays = Arrays(load(folder, "inputs", mapped=tiles is not None), load(folder, "targets"), kernel_NN)
    job.call(arrays.head(WARM_ROWS), problem)  # warm, so that neither time nor memory counts what is imported
    call = partial(job.call, arrays, problem)
    facts = None
    if tiles is None:
        (found, seconds), peak_bytes = with_peak_memory(lambda: timed(call, CPU), CPU)
    else:
        found, seconds, peak_bytes, facts = measure_cold(tiles, call)
    judged = judge(found, arrays, problem, load(folder, "test_inputs"), load(folder, "truth"))
    return Measured(
        seconds,
        peak_bytes,
        judged.residual,
        judged.error,
        found.status,
        found.passes,
        found.ridge,
        found.note,
        facts,
    )


def load(folder: Path, name: str, *, mapped: bool = False) -> torch.Tensor:
    """Return an array of the problem that is prepared in a folder, in memory or as a private mapping of its file."""
    return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c" if mapped else None))


def main(specification: Path, result: Path) -> None:
    """Measure what a specification names."""
    asked = json.loads(specification.read_text())
    torch.set_num_threads(asked["threads"])
    measured = measure(Path(asked["folder"]), asked["name"])
    result.write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
