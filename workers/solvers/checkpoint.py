"""Positions of a solve in the storage of a run."""

import math
from typing import Any, final

import torch

from ntkpipe.storage.solver_state import SolverStates
from ntkpipe.workers.solvers.base import SolverState
from ntkpipe.workers.solvers.loop import AbstractCheckpoint, Position
from ntkpipe.workers.solvers.snapshot import join_state, split_state

PARTS_PER_STEP = 10_000
"""More than any step has, so that positions within a step count upwards."""

LOOP = "loop."
"""Before the names of what belongs to the loop, not to the solver."""


@final
class StoredCheckpoint(AbstractCheckpoint):
    """Keeps positions as states of one solution."""

    def __init__(self, states: SolverStates) -> None:
        self._states = states

    def save(self, position: Position) -> None:
        """Store a position."""
        constants, changing, values = split_state(position.state)
        tensors = {"total": position.total, "best_NT": position.best_NT}
        changing |= {f"{LOOP}{name}": value.numpy() for name, value in tensors.items() if value is not None}
        values |= {
            f"{LOOP}parts": position.parts,
            f"{LOOP}passes": position.passes,
            f"{LOOP}bytes_read": position.bytes_read,
            f"{LOOP}seconds": position.seconds,
            f"{LOOP}best_loss": None if math.isinf(position.best_loss) else position.best_loss,
            f"{LOOP}steps_since_best": position.steps_since_best,
        }
        self._states.save(place(position), constants, changing, values)

    def load(self, state_type: type[SolverState]) -> Position | None:
        """Read the last position."""
        found = self._states.load()
        if found is None:
            return None
        arrays, values = found
        loop: dict[str, Any] = {
            name.removeprefix(LOOP): torch.from_numpy(arrays.pop(name))
            for name in list(arrays)
            if name.startswith(LOOP)
        }
        loop |= {name.removeprefix(LOOP): values.pop(name) for name in list(values) if name.startswith(LOOP)}
        if loop["best_loss"] is None:
            loop["best_loss"] = math.inf
        return Position(join_state(state_type, arrays, values), **loop)


def place(position: Position) -> int:
    """Return a number that grows with every position of a solve."""
    return position.state.steps * PARTS_PER_STEP + position.parts
