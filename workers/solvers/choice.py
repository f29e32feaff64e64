"""Which solver: a factorisation where one fits, else the one predicted to be fastest, and a sentence that says why."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from ntkpipe.configs.errors import PlanError
from ntkpipe.configs.solve.auto import AutoSolve
from ntkpipe.configs.solve.base import IterativeSolve
from ntkpipe.configs.solve.union import SECTIONS, SolveConfig
from ntkpipe.configs.units import duration, size
from ntkpipe.workers.solvers.prediction import Machine, Prediction, Problem, predict

FACTORISE_UP_TO = 20_000
"""Samples for which a factorisation of the kernel is taken if it fits; one of features always is."""

PCG_RANK = 2000
"""Of the preconditioner, at most a fifth of N."""

CENTRES_PER_ROOT = 8
"""Centres of a Falkon model: this many times the square root of N."""

FEW_EPOCHS = 2
"""Of descent, when time is short."""


@final
@dataclass(frozen=True, slots=True)
class Choice:
    """A solver and how it was chosen."""

    section: SolveConfig
    """What is solved with; never ``auto``."""
    candidates: tuple[Prediction, ...]
    """All that were weighed, the chosen one among them; none if nothing was to be chosen."""
    why: str
    """In a sentence; empty if nothing was to be chosen."""


def choose(solve: SolveConfig, problem: Problem, machine: Machine, *, stops_early: bool = False) -> Choice:
    """Return the solver of a section; for ``auto`` a factorisation that fits the memory, else the quickest that does.

    Args:
        solve: What is asked.
        problem: Sizes.
        machine: Limits and speeds.
        stops_early: Only solvers that take steps are of use.

    Raises:
        PlanError: None fits the memory.
    """
    if not isinstance(solve, AutoSolve):
        return Choice(solve, (), "")
    stops_early = stops_early or solve.early_stopping is not None
    exact = list(_exact(solve, problem, stops_early))
    weighed = [(section, predict(section, problem, machine)) for section in exact]
    fitting = [(section, cost) for section, cost in weighed if cost.fits(machine)]
    budget = math.inf if solve.budget_seconds is None else solve.budget_seconds
    in_time = [pair for pair in fitting if pair[1].seconds <= budget]
    small = problem.size <= FACTORISE_UP_TO
    direct = [pair for pair in in_time if pair[0].kind == "gram" or (pair[0].kind == "cholesky" and small)]
    best = min(direct or in_time, key=lambda pair: pair[1].seconds, default=None)
    reason = "a factorisation that fits needs no assumption on the spectrum" if direct else "the quickest that fits"
    if best is None:
        short = [(section, predict(section, problem, machine)) for section in _approximate(solve, problem)]
        weighed += short
        allowed = [pair for pair in short if pair[1].fits(machine)]
        best = min([*fitting, *allowed], key=lambda pair: pair[1].seconds, default=None)
        reason = "no solver of the system itself fits the memory and the time; this one stops short of it"
        if best in fitting:
            reason = "none fits the time, and those that stop short of the system take no less"
    if best is None:
        needed = min(cost.memory_bytes for _, cost in weighed)
        raise PlanError(
            f"solution {solve.name!r}: no solver of {problem.size:,} samples fits {size(machine.memory_bytes)}; "
            f"the smallest one needs {size(needed, at_least=True)}. Raise resources.max_worker_bytes."
        )
    section, cost = best
    why = (
        f"{section.kind}: {reason}; about {duration(cost.seconds)}, {cost.passes:.1f} passes, {size(cost.memory_bytes)}"
    )
    return Choice(section, tuple(cost for _, cost in weighed), why)


def _exact(solve: AutoSolve, problem: Problem, stops_early: bool) -> Iterator[SolveConfig]:
    """Yield the solvers of the system itself."""
    if problem.num_features is not None and not stops_early:
        yield _section(solve, "gram")
    if not stops_early:
        yield _section(solve, "cholesky")
        if problem.tiles and solve.class_weight == "equal":
            yield _section(solve, "tile-cholesky")
    yield _section(solve, "pcg", rank=max(1, min(PCG_RANK, problem.size // 5)))
    yield _section(solve, "eigenpro2", epochs=20)


def _approximate(solve: AutoSolve, problem: Problem) -> Iterator[SolveConfig]:
    """Yield what is quicker than solving the system: a few epochs, or a model with few centres."""
    yield _section(solve, "gauss-seidel", epochs=1)
    yield _section(solve, "eigenpro2", epochs=FEW_EPOCHS)
    yield _section(solve, "falkon", centres=max(1, min(problem.size, round(CENTRES_PER_ROOT * problem.size**0.5))))


def _section(solve: AutoSolve, kind: str, **options: int) -> SolveConfig:
    """Return the section of a kind that asks for what ``auto`` was asked for."""
    section = SECTIONS[kind]
    shared = section.model_fields.keys() & IterativeSolve.model_fields.keys()
    values: dict[str, Any] = {name: getattr(solve, name) for name in shared}
    return section(**values, **options)
