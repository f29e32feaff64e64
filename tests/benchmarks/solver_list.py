"""Which solvers meet which problem."""

import importlib.util

from benchmarks import solver_peers
from benchmarks.solver_jobs import SolverJob, cholesky_floor, gram_floor, ours
from benchmarks.solver_problems import Problem


def solver_jobs(problem: Problem, with_peers: bool) -> tuple[SolverJob, ...]:
    """Return the jobs of a problem, the floor first where there is one."""
    if problem.kind == "disk":
        return (ours("pcg, rank 500, to 1e-4", "pcg", rank=500, tolerance=1e-4),)
    if problem.kind == "features":
        found = (
            SolverJob("float32 products, float64 eigh", gram_floor, is_floor=True),
            ours("gram", "gram"),
            ours("gram, path, chosen by LOO", "gram", ridges=problem.ridges, select="loo"),
            ours("gram, path, chosen by GCV", "gram", ridges=problem.ridges, select="gcv"),
        )
        return found + (solver_peers.OF_FEATURES if with_peers else ())
    epochs = 5 if problem.error == "classes" else 10
    found = (
        SolverJob("float32 Cholesky", cholesky_floor, is_floor=True),
        ours("cholesky", "cholesky"),
        ours("pcg, rank 500, to 1e-4", "pcg", rank=500, tolerance=1e-4),
        ours(f"eigenpro2, {epochs} epochs", "eigenpro2", epochs=epochs),
        ours("gauss-seidel, 1 epoch", "gauss-seidel", epochs=1),
        ours("askotch, 10 epochs", "askotch", epochs=10),
        ours("auto, to 1e-4", "auto", tolerance=1e-4),
    )
    return found + (solver_peers.OF_KERNELS if with_peers else ())


def find_job(problem: Problem, name: str) -> SolverJob:
    """Return a job by its name."""
    (job,) = (job for job in solver_jobs(problem, with_peers=True) if job.name == name)
    return job


def missing(job: SolverJob) -> list[str]:
    """Return the packages that a job needs and that are not installed."""
    return [package for package in job.needs if importlib.util.find_spec(package) is None]
