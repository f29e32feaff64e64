"""Which solver each solution of a run is found with, and what it will cost."""

from collections.abc import Mapping

from ntkpipe.configs.kernels.names import CLOSED_FORMS
from ntkpipe.configs.run import RunConfig
from ntkpipe.configs.solve.auto import AutoSolve
from ntkpipe.configs.solve.union import SECTIONS, SolveConfig
from ntkpipe.storage.records import ChosenSolver, Geometry
from ntkpipe.workers.solvers.choice import Choice, choose
from ntkpipe.workers.solvers.prediction import CACHE_BYTES, FORMULA_FLOPS, Machine, Problem

DEFAULT_RELATIVE_RIDGE = 1e-3
"""Of a ridge in absolute units, for kernels whose diagonal is not known beforehand."""


def choose_solvers(
    config: RunConfig, geometry: Geometry, sample_size: int, chosen: Mapping[str, ChosenSolver]
) -> dict[str, Choice]:
    """Return the choice of every solution.

    Args:
        config: As the user wrote it.
        geometry: Of the run.
        sample_size: Numbers in a sample, which a formula reads for every entry.
        chosen: What a run that was started before has chosen, which other resources do not change.

    Raises:
        PlanError: No solver fits a worker's memory.
    """
    machine = Machine(memory_bytes=float(config.resources.max_worker_bytes))
    found: dict[str, Choice] = {}
    for solve in config.solve:
        if isinstance(solve, AutoSolve) and solve.name in chosen:
            section, why = chosen[solve.name].section, chosen[solve.name].why
            found[solve.name] = Choice(SECTIONS[section["kind"]].model_validate(section), (), why)
        else:
            found[solve.name] = choose(solve, run_problem(solve, geometry, sample_size), machine)
    return found


def run_problem(solve: SolveConfig, geometry: Geometry, sample_size: int) -> Problem:
    """Return the sizes of the system of a solution."""
    kernel, _ = geometry.matrix(solve.kernel)
    train = geometry.train_split
    size = geometry.splits[train].num_samples * kernel.width
    itemsize = 4 if geometry.dtype == "float32" else 8
    stored = (train, train) in geometry.pairs
    formula = kernel.kind in CLOSED_FORMS and not stored
    has_features = kernel.feature_dim is not None and not kernel.num_negative and not kernel.cross
    num_features = (kernel.feature_dim or 0) * max(1, len(kernel.groups)) if has_features else None
    kept = stored and size**2 * itemsize / 2 <= CACHE_BYTES
    unit_diagonal = kernel.cosine or kernel.kind in CLOSED_FORMS
    relative = solve.ridge if solve.ridge_scale == "mean-diagonal" or unit_diagonal else DEFAULT_RELATIVE_RIDGE
    return Problem(
        size=size,
        num_targets=1 if kernel.width > 1 else geometry.solution_targets[geometry.solutions.index(solve.name)],
        itemsize=itemsize,
        num_features=num_features,
        entry_flops=2.0 * sample_size + FORMULA_FLOPS if formula else 0.0,
        entry_bytes=float(itemsize) if stored and not kept else 0.0,
        tiles=stored,
        relative_ridge=relative,
    )
