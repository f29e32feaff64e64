"""What a run can do without: leftovers of processes that were killed, and of work that is finished.

Nothing that a receipt names is garbage, nor is anything that a run does not write itself: such foreign objects are
reported and left alone. Whoever removes garbage holds the run's lock, because half a task of a living driver looks
like one of a dead driver.
"""

import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import final

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.metadata import METADATA, ArraySpec
from ntkpipe.storage.solutions import committed_as
from ntkpipe.storage.stores.base import AbstractStore

FAILURE = re.compile(rf"{layout.FAILED}/(?P<stage>[^/]+)/(?P<task>.+)-\d{{6,}}-\d+\.json")
HEARTBEAT = re.compile(rf"{layout.LOCK}/heartbeat-(?P<epoch>\d{{6,}})\.json")
PASSING = re.compile(rf"{layout.LOCK}/(clock|probe)-[0-9a-f]+")
KEPT = re.compile(
    rf"{layout.MANIFEST}|{layout.STATUS}|{layout.LOCK}/epoch-\d{{6,}}\.json|{layout.RECEIPTS}/.+\.json"
    rf"|{layout.SEGMENTS}/.+{re.escape(layout.SEGMENT_SUFFIX)}|{layout.EVENTS}/\d{{6,}}/\d{{6,}}\.jsonl"
    rf"|{layout.JOBS}/[^/]+\.json"
)


class Kind(StrEnum):
    """Why something is garbage."""

    TEMPORARY = "temporary objects of writers that were killed"
    CHUNK = "chunks that no receipt names"
    OBJECT = "objects that no receipt names"
    RECEIPT = "empty receipts"
    SOLVER = "states of solvers that are done or unknown"
    FAILURE = "failures of tasks that are finished now"
    LOCK = "signs of life of earlier drivers"


@dataclass(frozen=True, slots=True)
class Piece:
    """An object that can go."""

    key: str
    num_bytes: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Garbage:
    """What was found in a run besides the run."""

    pieces: tuple[Piece, ...]
    foreign: tuple[str, ...]
    """Objects that no run writes; left alone."""

    @property
    def num_bytes(self) -> int:
        """Of all pieces."""
        return sum(piece.num_bytes for piece in self.pieces)

    def by_kind(self) -> dict[Kind, tuple[int, int]]:
        """Return number and bytes of the pieces of every kind that there is."""
        found: dict[Kind, tuple[int, int]] = {}
        for piece in self.pieces:
            number, num_bytes = found.get(piece.kind, (0, 0))
            found[piece.kind] = number + 1, num_bytes + piece.num_bytes
        return found


def find_garbage(
    store: AbstractStore,
    specs: Iterable[ArraySpec],
    planned: Mapping[str, frozenset[str]],
    owners: Mapping[str, str],
    epoch: int,
) -> Garbage:
    """Look through everything that is stored of a run; one listing. Memory is O(objects).

    Args:
        store: Of the run.
        specs: Its arrays.
        planned: Ids of the tasks of every stage.
        owners: By folder of the run, the stage of whose tasks it holds small objects, by task.
        epoch: The latest one.

    Raises:
        StorageError: A receipt or segment is damaged, so that nobody knows what it names.
    """
    judge = _Judge(Ledger(store), {spec.path: spec for spec in specs}, planned, owners, epoch)
    pieces = [Piece(key, size, Kind.TEMPORARY) for key, size in store.debris().items()]
    foreign = []
    for key, size in store.sizes("").items():
        if judge.is_needed(key, size):
            continue
        kind = judge.kind(key)
        if kind is None:
            foreign.append(key)
        else:
            pieces.append(Piece(key, size, kind))
    return Garbage(tuple(pieces), tuple(foreign))


def remove_garbage(store: AbstractStore, garbage: Garbage) -> Garbage:
    """Delete all pieces; return what went. What the store refuses to touch, such as a link out of the run, is foreign."""
    with suppress(StorageError):
        store.delete_many(piece.key for piece in garbage.pieces)
        return garbage
    gone, refused = [], []
    for piece in garbage.pieces:
        try:
            store.delete(piece.key)
        except StorageError:
            refused.append(piece.key)
        else:
            gone.append(piece)
    return Garbage(tuple(gone), (*garbage.foreign, *refused))


def remove_empty_folders(root: Path) -> int:
    """Remove the folders below ``root`` that hold nothing, without following links; return how many."""
    removed = 0
    for folder, _, _ in os.walk(root, topdown=False):
        if Path(folder) != root:
            # One that holds anything is not removed, whatever the walk has seen.
            with suppress(OSError):
                Path(folder).rmdir()
                removed += 1
    return removed


@final
class _Judge:
    """Tells what a run needs."""

    def __init__(
        self,
        ledger: Ledger,
        specs: dict[str, ArraySpec],
        planned: Mapping[str, frozenset[str]],
        owners: Mapping[str, str],
        epoch: int,
    ) -> None:
        self._specs = specs
        self._planned = planned
        self._owners = owners
        self._epoch = epoch
        self._committed = {stage: ledger.committed(stage) for stage in {*planned, *ledger.stages()}}
        self._named = {f"{layout.DATA}/{METADATA}"}
        for path in specs:
            parts = path.split("/")
            self._named |= {"/".join((layout.DATA, *parts[:depth], METADATA)) for depth in range(1, len(parts) + 1)}
        for stage in self._committed:
            for receipt in ledger.receipts(stage):
                self._named |= {record.key for record in receipt.objects}
                # An array that the run does not have is for `verify` to report; its chunks are foreign.
                self._named |= {
                    specs[record.array].key(record.position) for record in receipt.chunks if record.array in specs
                }

    def is_needed(self, key: str, size: int) -> bool:
        """Return whether an object is part of the run."""
        if key in self._named:
            return True
        if KEPT.fullmatch(key):
            return size > 0 or not key.startswith(f"{layout.RECEIPTS}/")
        if failure := FAILURE.fullmatch(key):
            return not self._is_committed(failure["stage"], failure["task"])
        if heartbeat := HEARTBEAT.fullmatch(key):
            return int(heartbeat["epoch"]) >= self._epoch
        return key.startswith(f"{layout.SOLVER}/") and self._is_open(key)

    def kind(self, key: str) -> Kind | None:
        """Return why an object that is not needed is garbage, None if it is foreign."""
        first, _, rest = key.partition("/")
        if first == layout.DATA:
            return Kind.CHUNK if self._is_chunk(rest) else None
        if first == layout.LOCK:
            return Kind.LOCK if HEARTBEAT.fullmatch(key) or PASSING.fullmatch(key) else None
        if first == layout.FAILED:
            return Kind.FAILURE if FAILURE.fullmatch(key) else None
        if first == layout.RECEIPTS:
            return Kind.RECEIPT if KEPT.fullmatch(key) else None
        if first == layout.SOLVER:
            return Kind.SOLVER
        # Beside what a finished task has left, anything else is somebody else's.
        return Kind.OBJECT if first in self._owners and self._is_open(key) else None

    def _is_open(self, key: str) -> bool:
        """Return whether a small object lies where a task that is not finished leaves its own."""
        folder, _, rest = key.partition("/")
        stage, task = self._owners[folder], rest.partition("/")[0].removesuffix(".json")
        return task in self._planned.get(stage, ()) and task not in self._committed.get(stage, ())

    def _is_committed(self, stage: str, task: str) -> bool:
        _, name = committed_as(stage, task)
        return name in self._committed.get(stage, ())

    def _is_chunk(self, path: str) -> bool:
        array, _, position = path.rpartition("/c/")
        spec = self._specs.get(array)
        parts = position.split("/")
        if spec is None or len(parts) != len(spec.shape) or not all(part.isdecimal() for part in parts):
            return False
        # No other name than the run's own: 01 is not 1.
        index = tuple(map(int, parts))
        return spec.key(index) == f"{layout.DATA}/{path}" and all(part.stop > part.start for part in spec.region(index))
