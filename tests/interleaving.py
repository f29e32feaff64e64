"""What can happen to a run at any of its writes, and what its results must be all the same."""

import socket
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import growing
import numpy as np
from interruptions import Killed
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import NtkPipeError, StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.locks import boot_id, current_epoch, read_claim
from ntkpipe.storage.stores.files import PARTIAL
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.registry import open_store

WRITES = ("put_new", "put", "delete", "copy")
HEARTBEAT = "ntkpipe-heartbeat"

BETWEEN_READINGS = 30
"""Writes, each of which counts twice, between two readings."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What determines the results of a run."""

    num: int
    ridge: float

    def overrides(self) -> list[str]:
        return [f"data.splits.train.options.num={self.num}", f"solve.0.ridge={self.ridge}"]


@dataclass(frozen=True, slots=True)
class Truth:
    """What an uninterrupted run has found."""

    hashes: dict[str, str]
    num_bytes: int
    kernel: Any
    features: Any
    solution: Any


@cache
def truth_of(spec: Spec) -> Truth:
    """Carry out a run without any disturbance, once."""
    with TemporaryDirectory(prefix="ntkpipe-truth-") as folder:
        root = Path(folder) / "run"
        run = ntkpipe.run(growing.config(num_test=2), root, overrides=spec.overrides())
        num_bytes = sum((root / key).stat().st_size for key in chunk_hashes(root))
        return Truth(chunk_hashes(root), num_bytes, *_readings(run, spec))


def _readings(run: Any, spec: Spec) -> tuple[Any, Any, Any]:
    return (
        np.asarray(run.kernel("trntk0")[:, :]),
        np.asarray(run.features["signs", "train"][0 : spec.num]),
        np.asarray(run.solution("krr")),
    )


def check_readings(root: Path, spec: Spec) -> None:
    """Ask a run everything, whatever state it is in: answers are right, or a typed error."""
    truth = truth_of(spec)
    try:
        run = ntkpipe.open_run(root)
        status = run.status()
        assert all(0 <= stage.done <= stage.total for stage in status.stages)
    except NtkPipeError:
        return
    for read, expected in (
        (lambda: run.kernel("trntk0")[:, :], truth.kernel),
        (lambda: run.features["signs", "train"][0 : spec.num], truth.features),
        (lambda: run.solution("krr"), truth.solution),
    ):
        try:
            found = np.asarray(read())
        except NtkPipeError:
            continue
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


class Trap:
    """Counts the writes of local stores, and does something at one of them, before it or after it.

    ``kill`` ends the driver there as if its process had died: nothing is written any more, and what was being written
    is left half done. ``fail`` lets the write fail once. ``steal`` lets another driver take the run over. ``read`` asks
    the run everything in between, again and again.
    """

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._left = -1
        self._action: Callable[[str, LocalRunStore, tuple[Any, ...], bool], None] | None = None
        self._dead = False

    @contextmanager
    def armed(self, action: str, at: int, reader: Callable[[], None] | None = None) -> Any:
        """Do something at write number ``at``, every write counting twice: before and after."""
        self._left, self._dead = at, False
        self._action = {"kill": self._kill, "fail": self._fail, "steal": self._steal, "read": self._read}[action]
        self._reader = reader
        try:
            yield
        finally:
            self._left, self._dead = -1, False

    def point(self, what: str, store: LocalRunStore, arguments: tuple[Any, ...], *, before: bool) -> None:
        if threading.current_thread().name == HEARTBEAT:
            if self._dead:
                raise StorageError("dead")
            return
        with self._lock:
            if self._dead:
                raise Killed
            if self._left < 0:
                return
            self._left -= 1
            if self._left >= 0:
                return
            action = self._action
        assert action is not None
        action(what, store, arguments, before)

    def _count(self, action: str, what: str, before: bool) -> None:
        self.met[f"{action} {'before' if before else 'after'} {what}"] += 1

    def _kill(self, what: str, store: LocalRunStore, arguments: tuple[Any, ...], before: bool) -> None:
        self._count("kill", what, before)
        self._dead = True
        if before and what in ("put", "put_new"):
            key, data = arguments
            path = store.root / f"{key}.{uuid.uuid4().hex}{PARTIAL}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[: len(data) // 2])
        raise Killed

    def _fail(self, what: str, store: LocalRunStore, arguments: tuple[Any, ...], before: bool) -> None:
        self._count("fail", what, before)
        raise StorageError(f"{store.url}: injected failure of {what}")

    def _steal(self, what: str, store: LocalRunStore, arguments: tuple[Any, ...], before: bool) -> None:
        epoch = current_epoch(store)
        if epoch:
            self._count("steal", what, before)
            claim = read_claim(store, epoch)
            other = claim.model_copy(update={"epoch": epoch + 1, "process_started": "0", "nonce": "another"})
            store.put_new(layout.epoch(epoch + 1), other.encode())

    def _read(self, what: str, store: LocalRunStore, arguments: tuple[Any, ...], before: bool) -> None:
        self._count("read", what, before)
        assert self._reader is not None
        self._reader()
        self._left = BETWEEN_READINGS


@contextmanager
def trapped() -> Any:
    """Let a trap watch all local stores."""
    trap = Trap()
    originals = {name: getattr(LocalRunStore, name) for name in WRITES}

    def watched(name: str) -> Callable[..., Any]:
        def write(store: LocalRunStore, *arguments: Any) -> Any:
            trap.point(name, store, arguments, before=True)
            found = originals[name](store, *arguments)
            trap.point(name, store, arguments, before=False)
            return found

        return write

    for name in WRITES:
        setattr(LocalRunStore, name, watched(name))
    try:
        yield trap
    finally:
        for name, original in originals.items():
            setattr(LocalRunStore, name, original)


def bury(root: Path) -> None:
    """Let the last driver of a run be a process that is gone."""
    store = open_store(root)
    epoch = current_epoch(store)
    if epoch:
        gone = {"process_started": "0", "host": socket.gethostname(), "boot_id": boot_id()}
        store.put(layout.heartbeat(epoch), read_claim(store, epoch).model_copy(update=gone).encode())


def damage(path: Path, how: str, where: int) -> None:
    """Flip a bit of a file, cut it off, or remove it; what shares its content with another run is left alone."""
    if how == "delete":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[where % len(data)] ^= 1 << (where % 8)
    else:
        del data[max(1, where % len(data)) :]
    path.unlink()
    path.write_bytes(bytes(data))
