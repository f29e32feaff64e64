"""One driver at a time: epochs claimed by create-only objects, kept alive by heartbeats.

Whoever created the highest ``lock/epoch-N.json`` owns the run. The epoch object holds the owner's first sign of life,
later ones replace ``lock/heartbeat-N.json``. A run can be taken over, by creating epoch N + 1, when its owner is known
to be dead (a process of this machine that is gone) or has been silent for a whole lease.
"""

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, final

from ntkpipe.configs.errors import RunLockedError, StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.records import Record
from ntkpipe.storage.stores.base import AbstractStore

HEARTBEATS_PER_LEASE = 6


class Claim(Record):
    """Who holds an epoch."""

    schema_version: Literal[1] = 1
    epoch: int
    host: str
    boot_id: str
    process: int
    process_started: str
    """Start time of the process in clock ticks, so that a reused process id is not mistaken for the owner."""
    lease_seconds: float
    alive_at: float
    released: bool = False


@final
class EpochLock:
    """One driver's tenure of a run; a context manager that renews its heartbeat from a thread.

    Attributes:
        epoch: The number of this tenure, 1 for the first.
    """

    def __init__(self, store: AbstractStore, lease_seconds: float) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.epoch = 0

    def __enter__(self) -> "EpochLock":
        """Claim the next epoch.

        Raises:
            RunLockedError: Another driver is alive, or claimed the epoch first.
        """
        last = current_epoch(self._store)
        if last:
            self._refuse_if_alive(last)
        self.epoch = last + 1
        if not self._store.put_new(layout.epoch(self.epoch), self._claim().encode()):
            raise RunLockedError(f"{self._store.url}: another driver started at the same moment and owns the run now.")
        self._thread = threading.Thread(target=self._renew, name="ntkpipe-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop renewing and say that the run is free."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # Without this the next driver finds a dead process or waits for the lease; a full disk must not hide its error.
        with suppress(StorageError):
            self._store.put(layout.heartbeat(self.epoch), self._claim(released=True).encode())

    def check(self) -> None:
        """Refuse to go on when a later epoch exists.

        Raises:
            RunLockedError: This driver was thought dead and has been replaced.
        """
        latest = current_epoch(self._store)
        if latest != self.epoch:
            raise RunLockedError(
                f"{self._store.url}: this driver (epoch {self.epoch}) was silent for longer than its lease of "
                f"{self._lease_seconds:g} s and epoch {latest} has taken over; it stops without writing."
            )

    def _claim(self, *, released: bool = False) -> Claim:
        return Claim(
            epoch=self.epoch,
            host=socket.gethostname(),
            boot_id=_boot_id(),
            process=os.getpid(),
            process_started=_process_started(os.getpid()) or "",
            lease_seconds=self._lease_seconds,
            alive_at=time.time(),
            released=released,
        )

    def _renew(self) -> None:
        while not self._stop.wait(self._lease_seconds / HEARTBEATS_PER_LEASE):
            # A missed beat is made up by the next one; after a whole lease of them another driver may take over.
            with suppress(StorageError):
                self._store.put(layout.heartbeat(self.epoch), self._claim().encode())

    def _refuse_if_alive(self, epoch: int) -> None:
        claim = read_claim(self._store, epoch)
        state = liveness(claim)
        if state in ("released", "dead"):
            return
        silent = time.time() - claim.alive_at
        if silent <= claim.lease_seconds:
            raise RunLockedError(
                f"{self._store.url} is being worked on by process {claim.process} on {claim.host} (epoch {epoch}, last "
                f"sign of life {silent:.0f} s ago). Wait for it, stop it, or try again when it has been silent for "
                f"{claim.lease_seconds:g} s."
            )


def current_epoch(store: AbstractStore) -> int:
    """Return the number of the latest epoch, 0 if the run was never claimed."""
    prefix = f"{layout.LOCK}/epoch-"
    numbers = [int(name.removeprefix(prefix)[:6]) for name in store.names(layout.LOCK) if name.startswith(prefix)]
    return max(numbers, default=0)


def read_claim(store: AbstractStore, epoch: int) -> Claim:
    """Return the latest sign of life of an epoch's owner."""
    key = layout.heartbeat(epoch)
    data = store.get(key)
    if data is None:
        key = layout.epoch(epoch)
        data = store.read(key)
    return Claim.parse(data, f"{store.url}/{key}")


def liveness(claim: Claim) -> Literal["released", "dead", "alive", "unknown"]:
    """Return what can be known of an owner from here: processes of other machines are unknown."""
    if claim.released:
        return "released"
    if claim.host != socket.gethostname() or claim.boot_id != _boot_id():
        return "unknown"
    return "alive" if _process_started(claim.process) == claim.process_started else "dead"


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _process_started(process: int) -> str | None:
    """Return a process's start time from /proc, None if it is gone; without /proc nobody is known to be dead."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the command, may hold spaces and brackets; the rest follows its last bracket.
    fields = text.rpartition(")")[2].split()
    # A zombie (state Z) can no longer write.
    return None if fields[0] == "Z" else fields[19]
