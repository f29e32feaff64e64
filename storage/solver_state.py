"""Where a solver is, between two of its steps: what a killed solve goes on from.

Not part of a run's results: a solution has a receipt like every other task, and what lies here is deleted once it is
committed. What is damaged or belongs to something else counts as not there.
"""

import io
import json
from collections.abc import Iterable
from typing import Any, Self, final

import google_crc32c
import numpy as np

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.documents import Record
from ntkpipe.storage.stores.base import AbstractStore

Arrays = dict[str, Array]

CHECKSUM_BYTES = 8
VALUES = "__values__"


class SolveProgress(Record):
    """How far a solve is; for whoever watches, and for the driver of a solve that is shared between workers."""

    place: int
    """Of the state that was stored last."""
    num_parts: int
    """Of the step after it; 0 for a solver whose steps have none."""
    finished: bool
    """Whether there is no step after it."""
    text: str
    """In words: steps, passes, what is left, time."""

    @classmethod
    def read(cls, store: AbstractStore, name: str) -> Self | None:
        """Return how far the solve of a solution is; None if it has not begun or has ended, or nobody can tell."""
        key = layout.solver_progress(name)
        data = store.get(key)
        try:
            return None if data is None else cls.parse(data, f"{store.url}/{key}")
        except StorageError:
            return None


def last_state(store: AbstractStore, name: str) -> str:
    """Return a name of a solution's last stored state that grows with every state; empty without one."""
    return max(store.names(layout.solver_states(name)), default="")


def clear_solver(store: AbstractStore, name: str) -> None:
    """Delete all that is stored of an unfinished solve."""
    store.delete_many(store.names(layout.solver(name)))


@final
class SolverStates:
    """States of one solution, of which the last one counts. What no step changes is read once and kept.

    Args:
        store: Of the run.
        name: Of the solution.
        identity: What a state must have been stored with to be read back.
    """

    def __init__(self, store: AbstractStore, name: str, identity: str) -> None:
        self._store = store
        self._name = name
        self._identity = identity
        self._constants: Arrays | None = None

    def save(self, position: int, constants: Arrays, changing: Arrays, values: dict[str, Any]) -> None:
        """Store a state and delete the ones before it.

        Args:
            position: Grows with every state.
            constants: Arrays that are the same in every state; stored once.
            changing: Other arrays.
            values: JSON values.
        """
        if self._constants is None:
            self._put(layout.solver_constants(self._name), constants, {})
            self._constants = constants
        key = layout.solver_state(self._name, position)
        self._put(key, changing, values)
        self._store.delete_many([other for other in self._store.names(layout.solver_states(self._name)) if other < key])

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Return arrays, constants included, and values of the last state that is whole; None if there is none."""
        for key in reversed(self._store.names(layout.solver_states(self._name))):
            found = self._get(key)
            if found is None:
                continue
            if self._constants is None:
                constants = self._get(layout.solver_constants(self._name))
                if constants is None:
                    return None
                self._constants = constants[0]
            return self._constants | found[0], found[1]
        return None

    def report(self, progress: SolveProgress) -> None:
        """Tell how far the solve is."""
        self._store.put(layout.solver_progress(self._name), progress.encode())

    def put_part(self, position: int, part: int, value: Array, values: dict[str, Any]) -> None:
        """Store what another process adds to the step after a state, and JSON values beside it."""
        self._put(layout.solver_part(self._name, position, part), {"value": value}, values)

    def has_parts(self, position: int, parts: Iterable[int]) -> bool:
        """Return whether some parts of the step after a state were all stored; lists them once."""
        stored = set(self._store.names(layout.solver_parts(self._name)))
        return stored.issuperset(layout.solver_part(self._name, position, part) for part in parts)

    def part(self, position: int, part: int) -> tuple[Array, dict[str, Any]] | None:
        """Return a part of the step after a state, and its values; None if it is not there or damaged."""
        found = self._get(layout.solver_part(self._name, position, part))
        return None if found is None else (found[0]["value"], found[1])

    def clear_parts(self, position: int) -> None:
        """Delete the parts of steps up to the one after a state."""
        later = layout.solver_part(self._name, position + 1, 0)
        self._store.delete_many([key for key in self._store.names(layout.solver_parts(self._name)) if key < later])

    def _put(self, key: str, arrays: Arrays, values: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        text = json.dumps({"identity": self._identity, "values": values})
        np.savez(buffer, **arrays, **{VALUES: np.array(text)})  # type: ignore[arg-type]
        data = buffer.getvalue()
        self._store.put(key, f"{google_crc32c.value(data):08x}".encode() + data)

    def _get(self, key: str) -> tuple[Arrays, dict[str, Any]] | None:
        data = self._store.get(key)
        if data is None or f"{google_crc32c.value(data[CHECKSUM_BYTES:]):08x}".encode() != data[:CHECKSUM_BYTES]:
            return None
        with np.load(io.BytesIO(data[CHECKSUM_BYTES:]), allow_pickle=False) as archive:
            arrays = dict(archive)
        document = json.loads(str(arrays.pop(VALUES)))
        return (arrays, document["values"]) if document["identity"] == self._identity else None
