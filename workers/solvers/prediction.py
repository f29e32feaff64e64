"""What a solve will cost: passes, floating point operations, bytes, memory and time, before anything is computed.

Plain arithmetic on sizes, without torch. Counts follow the algorithms. How many steps an iterative solver takes depends
on the spectrum, which nobody knows beforehand: eigenvalues are assumed to fall as 1 / i^2, as those of rough kernels of
images do, and the first steps tell better (see :mod:`ntkpipe.workers.solvers.watcher`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

from ntkpipe.configs.solve.base import SolveBase
from ntkpipe.configs.solve.centres import EigenPro3Solve, EigenPro4Solve, FalkonSolve
from ntkpipe.configs.solve.coordinates import ASkotchSolve, GaussSeidelSolve
from ntkpipe.configs.solve.descent import EigenProSolve
from ntkpipe.configs.solve.direct import CholeskySolve, GramSolve
from ntkpipe.configs.solve.krylov import PCGSolve
from ntkpipe.configs.solve.logistic import LogisticSolve
from ntkpipe.configs.solve.spectral import FilterSolve
from ntkpipe.configs.solve.tiled import TileCholeskySolve

CACHE_BYTES = 2 * 2**30
"""Decoded tiles, or features, up to this size are read from storage once, however many passes a solver takes."""

FORMULA_FLOPS = 15.0
"""Of an entry beside an inner product of two samples: what a distance, a root and an exponential cost. Recursions over
layers cost more; only predictions depend on it."""

EIGEN_FLOPS = 9
"""Times n^3: of a full eigendecomposition."""

LOGISTIC_PRODUCTS = 150
"""Of a logistic fit: about fifteen Newton steps of ten products each."""


@final
@dataclass(frozen=True, slots=True)
class Machine:
    """Nominal speeds and what memory there is."""

    memory_bytes: float
    """That a solve may take."""
    single_flops: float = 8e10
    """Of matrix products per second in float32, on two cores."""
    double_flops: float = 4e10
    storage_bytes: float = 1e9
    """Read from storage per second."""
    memory_speed: float = 1e10
    """Read from memory per second."""


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """The sizes of a system."""

    size: int
    """N."""
    num_targets: int
    """T."""
    itemsize: int = 4
    """Bytes of an entry."""
    num_features: int | None = None
    """K, if the kernel is a Gram matrix of features."""
    entry_flops: float = 0.0
    """Spent on an entry whenever it is read, if it is computed; 0 if it is kept."""
    entry_bytes: float = 0.0
    """Read from storage for an entry; 0 if it is in memory or computed."""
    tiles: bool = False
    """Whether a run stores its tiles."""
    relative_ridge: float = 1e-3
    """The ridge over the mean diagonal entry."""


@final
@dataclass(frozen=True, slots=True)
class Prediction:
    """What a solver is predicted to take."""

    kind: str
    seconds: float = 0.0
    passes: float = 0.0
    """Over the kernel, or over the features for solvers of features."""
    flops: float = 0.0
    bytes_read: float = 0.0
    """From storage."""
    memory_bytes: float = 0.0

    def fits(self, machine: Machine) -> bool:
        """Return whether the memory suffices."""
        return self.memory_bytes <= machine.memory_bytes


def predict(solve: SolveBase, problem: Problem, machine: Machine) -> Prediction:
    """Return what a configured solver will take."""
    for section, count in _COUNTS.items():
        if isinstance(solve, section):
            return count(solve, problem, machine)
    raise AssertionError(f"no prediction for {type(solve).__name__}")


def kernel_passes(
    kind: str, num: float, problem: Problem, machine: Machine, *, halved: bool = True, memory: float = 0.0
) -> Prediction:
    """Return the cost of products with the kernel, or of reading all of its rows."""
    entries = float(problem.size) ** 2
    share = 0.5 if halved else 1.0
    product = 2 * entries * problem.num_targets
    recomputed = share * entries * problem.entry_flops
    if problem.num_features is not None and not problem.tiles:
        product = 4.0 * problem.size * problem.num_features * problem.num_targets
        recomputed = 0.0 if halved else recomputed
    flops, read = product + recomputed, share * entries * problem.entry_bytes
    speed = machine.single_flops if problem.itemsize == 4 else machine.double_flops
    kept = entries * problem.itemsize if not problem.entry_flops and not problem.entry_bytes else 0.0
    seconds = max(flops / speed, read / machine.storage_bytes, kept / machine.memory_speed)
    working = 8.0 * problem.size * problem.num_targets * 6 + kept
    return Prediction(kind, num * seconds, num, num * flops, num * read, working + memory)


def plus(prediction: Prediction, flops: float, speed: float) -> Prediction:
    """Add arithmetic that reads nothing."""
    return replace(prediction, seconds=prediction.seconds + flops / speed, flops=prediction.flops + flops)


def pcg_products(problem: Problem, rank: int, tolerance: float) -> int:
    """Return how many products preconditioned conjugate gradients take, under the assumed spectrum.

    With eigenvalues N c / i^2 that sum up to N, c = 6 / pi^2, the damped preconditioner leaves the condition number
    (ridge + lambda_r) / (ridge + lambda_N), and the error falls by (1 - 2 / sqrt(kappa)) a step.
    """
    scale, ridge = 6 / math.pi**2 * problem.size, problem.relative_ridge
    rank = max(1, min(rank, problem.size // 2))
    kappa = (ridge + scale / rank**2) / (ridge + scale / problem.size**2)
    return max(2, math.ceil(math.sqrt(kappa) / 2 * math.log(2 / min(tolerance, 0.5))))


def _cholesky(solve: SolveBase, problem: Problem, machine: Machine) -> Prediction:
    size, single = float(problem.size), problem.itemsize == 4
    found = kernel_passes("cholesky", 3, problem, machine, memory=16 * size**2)
    return plus(found, size**3 / 3, machine.single_flops if single else machine.double_flops)


def _tiled(solve: TileCholeskySolve, problem: Problem, machine: Machine) -> Prediction:
    size, itemsize = float(problem.size), 4 if solve.precision == "float32" else 8
    tile = min(float(solve.tile_rows), size)
    read = itemsize * (size**3 / (3 * tile) + 2 * size**2)
    found = kernel_passes("tile-cholesky", 3, problem, machine, memory=32 * tile**2)
    flops = size**3 / 3
    seconds = found.seconds + max(flops / machine.double_flops, read / machine.storage_bytes)
    return replace(found, seconds=seconds, flops=found.flops + flops, bytes_read=found.bytes_read + read)


def gram_passes(solve: GramSolve) -> int:
    """Return how many passes over the features there are: for the Gram matrix, leave-one-out errors, the residual."""
    return 3 if solve.select == "loo" or solve.leave_one_out else 2


def gram_sums(num: int, problem: Problem, machine: Machine) -> Prediction:
    """Return the cost of a pass for a Gram matrix, and of passes for vectors up to so many in all."""
    size, width = float(problem.size), float(problem.num_features or problem.size)
    read = num * size * width * (problem.itemsize if problem.entry_bytes else 0)
    flops = size * width * min(size, width) + (num - 1) * 2 * size * width * problem.num_targets
    seconds = max(flops / machine.single_flops, read / machine.storage_bytes)
    return Prediction("gram", seconds, num, flops, read)


def _gram(solve: GramSolve, problem: Problem, machine: Machine) -> Prediction:
    side = min(float(problem.size), float(problem.num_features or problem.size))
    found = gram_sums(gram_passes(solve), problem, machine)
    found = plus(found, (EIGEN_FLOPS if solve.ridges else 1 / 3) * side**3, machine.double_flops)
    return replace(found, memory_bytes=24 * side**2 + 16.0 * problem.size * problem.num_targets)


def pcg_passes(solve: PCGSolve, problem: Problem) -> int:
    """Return how many products there are beside the set-up: with directions, to check them, and for the certificate."""
    rank = 1 if solve.preconditioner == "none" else max(1, min(solve.rank, problem.size // 2))
    return min(solve.iterations, pcg_products(problem, rank, solve.tolerance)) + 2


def pcg_problem(solve: PCGSolve, problem: Problem) -> Problem:
    """Return the problem with a target for each target and ridge; they share every product."""
    return replace(problem, num_targets=problem.num_targets * (1 + len(solve.ridges)))


def _pcg(solve: PCGSolve, problem: Problem, machine: Machine) -> Prediction:
    size, rank = float(problem.size), max(1, min(solve.rank, problem.size // 2))
    if solve.preconditioner == "none":
        rank, setup = 1, 0.0
    else:
        # Columns at random places lie in nearly all tiles, which are read whole.
        setup = 1.0 if solve.preconditioner == "gaussian" or problem.entry_bytes else rank / size
    steps, many = pcg_passes(solve, problem), pcg_problem(solve, problem)
    found = kernel_passes("pcg", steps + setup, many, machine, memory=2 * problem.itemsize * size * rank)
    flops = 2 * size * rank**2 + steps * 4 * size * rank * many.num_targets
    return plus(found, flops, machine.single_flops if problem.itemsize == 4 else machine.double_flops)


def _eigenpro(solve: EigenProSolve, problem: Problem, machine: Machine) -> Prediction:
    sample = float(min(solve.subsample, problem.size))
    # Momentum is multiplied along with the coefficients.
    moving = replace(problem, num_targets=problem.num_targets * (1 + solve.momentum))
    found = kernel_passes("eigenpro2", solve.epochs + 1, moving, machine, halved=False, memory=24 * sample**2)
    per_epoch = 4.0 * problem.size * min(solve.top, int(sample)) * problem.num_targets
    return plus(found, EIGEN_FLOPS * sample**3 + solve.epochs * per_epoch, machine.double_flops)


def _gauss_seidel(solve: GaussSeidelSolve, problem: Problem, machine: Machine) -> Prediction:
    block = float(solve.block_rows or 1024)
    found = kernel_passes("gauss-seidel", solve.epochs + 1, problem, machine, halved=False, memory=16 * block**2)
    return plus(found, solve.epochs * problem.size * block**2 / 3, machine.double_flops)


def _askotch(solve: ASkotchSolve, problem: Problem, machine: Machine) -> Prediction:
    return kernel_passes("askotch", solve.epochs + 2, problem, machine, halved=False)


def _centres(solve: FalkonSolve | EigenPro3Solve | EigenPro4Solve, problem: Problem, machine: Machine) -> Prediction:
    steps = solve.iterations if isinstance(solve, FalkonSolve) else solve.epochs
    centres = float(min(solve.centres or problem.size, problem.size))
    found = centre_sums(solve, steps, problem, machine, more_flops=centres**3)
    return replace(found, memory_bytes=24 * centres**2)


def centre_sums(
    solve: FalkonSolve | EigenPro3Solve | EigenPro4Solve,
    num: int,
    problem: Problem,
    machine: Machine,
    *,
    more_flops: float = 0.0,
) -> Prediction:
    """Return the cost of passes over the kernel between samples and centres, and of arithmetic while they are read."""
    size, centres = float(problem.size), float(min(solve.centres or problem.size, problem.size))
    flops = num * size * centres * (problem.entry_flops + 4 * problem.num_targets) + more_flops
    read = num * size * centres * problem.entry_bytes
    seconds = max(flops / machine.single_flops, read / machine.storage_bytes)
    return Prediction(solve.kind, seconds, num * centres / size, flops, read)


def _filter(solve: FilterSolve, problem: Problem, machine: Machine) -> Prediction:
    size = float(problem.size)
    found = kernel_passes("filter", 2, problem, machine, memory=24 * size**2)
    return plus(found, EIGEN_FLOPS * size**3, machine.double_flops)


def _logistic(solve: LogisticSolve, problem: Problem, machine: Machine) -> Prediction:
    return kernel_passes("logistic", LOGISTIC_PRODUCTS, problem, machine)


_COUNTS: dict[type[SolveBase], Callable[..., Prediction]] = {
    CholeskySolve: _cholesky,
    TileCholeskySolve: _tiled,
    GramSolve: _gram,
    PCGSolve: _pcg,
    EigenProSolve: _eigenpro,
    GaussSeidelSolve: _gauss_seidel,
    ASkotchSolve: _askotch,
    FalkonSolve: _centres,
    EigenPro3Solve: _centres,
    EigenPro4Solve: _centres,
    FilterSolve: _filter,
    LogisticSolve: _logistic,
}
