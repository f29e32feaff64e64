"""Solves that workers share: the driver hands out the parts of a step, then the step, until there is none left."""

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from ntkpipe.configs.errors import TaskFailedError
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.drive import Driver
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.storage.solver_state import SolveProgress
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.tasks import SharedSolveTask, SolvePartTask, SolveStepTask

NOTE_SECONDS = 10.0
"""Between two words on how far a shared solve is."""

MAX_IDLE_ROUNDS = 3
"""Rounds in a row that move nothing: parts that are gone as soon as they are stored, for example."""


class Hands(Protocol):
    """Carries out the tasks of rounds, and says how far they are: a driver."""

    def run_shared(self, name: str, tasks: Iterable[SharedSolveTask]) -> bool:
        """Carry out tasks of one solution that leave no receipt; return whether it can still be found."""

    def note(self, text: str) -> None:
        """Tell whoever watches."""


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
    if not ledger.is_committed(SOLVE_STAGE, name):
        take_rounds(driver, name, lambda: SolveProgress.read(store, name))


def take_rounds(hands: Hands, name: str, read: Callable[[], SolveProgress | None]) -> None:
    """Hand out steps and parts until there is no step left.

    Args:
        hands: Carries them out.
        name: Of the solution.
        read: Returns how far the solve is.

    Raises:
        NtkPipeError: As for a stage.
        TaskFailedError: Rounds move nothing.
    """
    idle_rounds, place, told_at = 0, -1, time.monotonic()
    while True:
        if not hands.run_shared(name, [SolveStepTask(name)]):
            return
        progress = read()
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
            hands.note(f"solution {name}: {progress.text}")
            told_at = time.monotonic()
        if not hands.run_shared(name, (SolvePartTask(name, place, part) for part in range(progress.num_parts))):
            return
