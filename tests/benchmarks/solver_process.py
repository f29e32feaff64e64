"""Runs one job in a process of its own, so that its memory is its own: ``solver_process.py SPECIFICATION RESULT``."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import solver_disk
from benchmarks.measure import timed, with_peak_memory
from benchmarks.solver_jobs import Arrays, judge
from benchmarks.solver_problems import Problem, read_problem
from benchmarks.solver_suite import find_job

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
    disk: dict[str, float] = field(default_factory=dict)
    """Of a kernel from disk: what was read, how fast, and in how much memory."""


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
        return Measured(**json.loads(result.read_text()))


def measure(folder: Path, name: str) -> Measured:
    """Measure a job in this process."""
    problem = read_problem(folder)
    job = find_job(problem, name)
    if problem.kind == "disk":
        return _from_disk(problem, folder)
    arrays = _arrays(problem, folder)
    job.call(arrays.head(WARM_ROWS), problem)  # warm, so that neither time nor memory counts what is imported
    (found, seconds), peak_bytes = with_peak_memory(lambda: timed(lambda: job.call(arrays, problem), CPU), CPU)
    judged = judge(found, arrays, problem, folder)
    return Measured(
        seconds, peak_bytes, judged.residual, judged.error, found.status, found.passes, found.ridge, found.note
    )


def _from_disk(problem: Problem, folder: Path) -> Measured:
    """Solve a stored kernel with a cap on memory, after reading all of it once."""
    warm = Problem(**{**_settings(problem), "kind": "kernel"})
    inputs_ND, targets_NT = (_load(folder, name) for name in ("inputs", "targets"))
    small = Arrays(inputs_ND, targets_NT, torch.eye(len(inputs_ND[:WARM_ROWS]))).head(WARM_ROWS)
    solver_disk.pcg(small.kernel, small.targets_NT, warm.ridge)
    del inputs_ND
    tiles = solver_disk.ColdTiles(folder / "run")
    rates = solver_disk.read_rates(tiles)
    before = tiles.bytes_read
    allowed = solver_disk.allowance(tiles.stored_bytes)
    previous = solver_disk.cap_memory(allowed)
    (solution, seconds), growth = with_peak_memory(
        lambda: timed(lambda: solver_disk.pcg(solver_disk.operator_of(tiles), targets_NT, problem.ridge), CPU), CPU
    )
    resident = solver_disk.status_bytes("VmHWM")
    solver_disk.lift(previous)
    predicted_MT = solver_disk.predictions(
        _load(folder, "inputs"), _load(folder, "test_inputs"), solution.alpha, problem.bandwidth
    )
    facts = {
        "stored_bytes": tiles.stored_bytes,
        "kernel_bytes": tiles.size**2 * tiles.dtype.itemsize,
        "allowed_bytes": allowed,
        "resident_bytes": resident,
        "bytes_read": tiles.bytes_read - before,
        "files_per_second": rates.files,
        "tiles_per_second": rates.tiles,
    }
    truth_MT = _load(folder, "truth")
    return Measured(
        seconds,
        growth,
        solver_disk.relative_residual(tiles, targets_NT, solution.alpha, problem.ridge),
        float((predicted_MT.argmax(1) != truth_MT.argmax(1)).double().mean()),
        solution.status,
        solution.certificate.passes,
        None,
        "",
        facts,
    )


def _settings(problem: Problem) -> dict[str, object]:
    return {name: getattr(problem, name) for name in Problem.__slots__}


def _arrays(problem: Problem, folder: Path) -> Arrays:
    kernel_NN = _load(folder, "kernel") if problem.kind == "kernel" else None
    return Arrays(_load(folder, "inputs"), _load(folder, "targets"), kernel_NN)


def _load(folder: Path, name: str) -> torch.Tensor:
    return torch.from_numpy(np.load(folder / f"{name}.npy"))


def main(specification: Path, result: Path) -> None:
    """Measure what a specification names."""
    asked = json.loads(specification.read_text())
    torch.set_num_threads(asked["threads"])
    measured = measure(Path(asked["folder"]), asked["name"])
    result.write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
