"""Solves that workers share: the driver hands out the parts of a step, then the step, until there is none left."""

import time

from ntkpipe.configs.errors import TaskFailedError
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.drive import Driver
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.storage.solver_state import SolveProgress
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.tasks import SolvePartTask, SolveStepTask

NOTE_SECONDS = 10.0
"""Between two words on how far a shared solve is."""

MAX_IDLE_ROUNDS = 3
"""Rounds in a row that move nothing: parts that are gone as soon as they are stored, for example."""


def shared_solutions(config: RunConfig) -> tuple[str, ...]:
    """Return the solutions whose products are shared: there are several workers and the solver has parts."""
    resources = config.resources
    if not resources.share_solves or resources.executor == "serial" or resources.num_workers < 2:
        return ()
    return tuple(solve.name for solve in config.solve if solve.in_parts)


def run_rounds(driver: Driver, store: AbstractStore, ledger: Ledger, name: str) -> None:
    """Take a shared solve to its last state; its task certifies and commits it. One with a single part is left to it.

    A solve that fails for good, or needs what is missing, is left where it is.

    Raises:
        NtkPipeError: As for a stage.
        TaskFailedError: Rounds move nothing.
    """
    if ledger.is_committed(SOLVE_STAGE, name):
        return
    idle_rounds, place, told_at = 0, -1, time.monotonic()
    while True:
        if not driver.run_shared(name, [SolveStepTask(name)]):
            return
        progress = SolveProgress.read(store, name)
        # One part is no work to be shared.
        if progress is not None and (progress.finished or progress.num_parts == 1):
            return
        moved = progress is not None and progress.place > place
        idle_rounds = 0 if moved else idle_rounds + 1
        if progress is None or idle_rounds > MAX_IDLE_ROUNDS:
            raise TaskFailedError(
                f"the shared solve {name!r} does not get on: what its workers store does not stay there. Check the store, "
                "or set resources.share_solves=false."
            )
        place = progress.place
        if time.monotonic() - told_at >= NOTE_SECONDS:
            driver.note(f"solution {name}: {progress.text}")
            told_at = time.monotonic()
        if not driver.run_shared(name, (SolvePartTask(name, place, part) for part in range(progress.num_parts))):
            return
