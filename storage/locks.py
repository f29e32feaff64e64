"""One driver at a time: epochs claimed by create-only objects, kept alive by heartbeats.

Whoever created the highest ``lock/epoch-N.json`` owns the run. The epoch object holds the owner's first sign of life,
later ones replace ``lock/heartbeat-N.json``. A run can be taken over, by creating epoch N + 1, when its owner is known
to be dead (a process of this machine that is gone) or has been silent for a whole lease. Silence is measured by the clock
of the store, which dates the heartbeats and the moment of looking alike: clocks of different machines are never compared.
"""

import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Literal, final

from ntkpipe.configs.errors import NotFoundError, RunLockedError, StorageError
from ntkpipe.configs.store import StoreConfig
from ntkpipe.storage import layout
from ntkpipe.storage.documents import Record
from ntkpipe.storage.fencing import check_epoch
from ntkpipe.storage.stores.base import AbstractStore

HEARTBEATS_PER_LEASE = 6

EPOCH = re.compile(rf"{layout.LOCK}/epoch-(?P<number>\d{{6,}})\.json")

CLOCK_SECONDS = 1.0
"""Object stores date their objects in whole seconds."""


class Claim(Record):
    """Who holds an epoch."""

    schema_version: Literal[1] = 1
    epoch: int
    host: str
    boot_id: str
    """Of the machine, and of the namespace in which the process has its id."""
    process: int
    process_started: str
    """Start time of the process in clock ticks, so that a reused process id is not mistaken for the owner."""
    lease_seconds: float
    alive_at: float
    """By the owner's own clock; for people to read."""
    released: bool = False
    nonce: str = ""
    """Makes every claim's content unique, so that a claim whose answer was lost can be told from somebody else's."""


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
        self._renewed_at = time.monotonic()
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
        self._renewed_at = time.monotonic()
        self._thread = threading.Thread(target=self._renew, name="ntkpipe-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop renewing and say that the run is free; one that has been taken over is left alone."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        # Without this the next driver finds a dead process or waits for the lease; a full disk must not hide its error.
        with suppress(StorageError):
            if not self._superseded():
                self._store.put(layout.heartbeat(self.epoch), self._claim(released=True).encode())

    def check(self) -> None:
        """Refuse to go on when a later epoch exists; to be called before everything that is written.

        Raises:
            RunLockedError: This driver was thought dead and has been replaced.
            StorageError: The store does not answer.
        """
        check_epoch(self._store, self.epoch)

    def look(self) -> None:
        """Check when nothing is about to be written: a store that does not answer is given a lease.

        Raises:
            RunLockedError: This driver was thought dead and has been replaced.
            StorageError: The store does not answer, and has taken no sign of life for a whole lease.
        """
        try:
            self.check()
        except StorageError:
            if time.monotonic() - self._renewed_at > self._lease_seconds:
                raise

    def _claim(self, *, released: bool = False) -> Claim:
        return Claim(
            epoch=self.epoch,
            host=socket.gethostname(),
            boot_id=boot_id(),
            process=os.getpid(),
            process_started=process_started(os.getpid()) or "",
            lease_seconds=self._lease_seconds,
            alive_at=time.time(),
            released=released,
            nonce=uuid.uuid4().hex,
        )

    def _renew(self) -> None:
        while not self._stop.wait(self._lease_seconds / HEARTBEATS_PER_LEASE):
            # A missed beat is made up by the next one; after a whole lease of them another driver may take over.
            with suppress(StorageError):
                if self._superseded():
                    return
                self._store.put(layout.heartbeat(self.epoch), self._claim().encode())
                self._renewed_at = time.monotonic()

    def _superseded(self) -> bool:
        return self._store.exists(layout.epoch(self.epoch + 1))

    def _refuse_if_alive(self, epoch: int) -> None:
        claim = read_claim(self._store, epoch)
        if liveness(claim) in ("released", "dead"):
            return
        silent = silent_seconds(self._store, epoch)
        if silent <= claim.lease_seconds + CLOCK_SECONDS:
            raise RunLockedError(
                f"{self._store.url} is being worked on by process {claim.process} on {claim.host} (epoch {epoch}, last "
                f"sign of life {silent:.0f} s ago). Wait for it, stop it, or try again when it has been silent for "
                f"{claim.lease_seconds:g} s."
            )


def current_epoch(store: AbstractStore) -> int:
    """Return the number of the latest epoch, 0 if the run was never claimed."""
    found = (EPOCH.fullmatch(name) for name in store.names(layout.LOCK))
    return max((int(match["number"]) for match in found if match), default=0)


def read_claim(store: AbstractStore, epoch: int) -> Claim:
    """Return the latest sign of life of an epoch's owner that can be read; nobody is known where none can.

    A damaged one, such as the empty object that a power failure leaves, must not lock a run for ever: what counts then is
    how long ago it was written.
    """
    for key in (layout.heartbeat(epoch), layout.epoch(epoch)):
        data = store.get(key)
        if data is not None:
            with suppress(StorageError):
                return Claim.parse(data, f"{store.url}/{key}")
    return Claim(
        epoch=epoch,
        host="an unknown machine",
        boot_id="",
        process=0,
        process_started="",
        lease_seconds=StoreConfig().lease_seconds,
        alive_at=0.0,
    )


def silent_seconds(store: AbstractStore, epoch: int) -> float:
    """Return how long ago an epoch's owner has given a sign of life, by the store's clock; writes an object to read it.

    Raises:
        NotFoundError: There is no such epoch.
    """
    at = store.modified(layout.heartbeat(epoch))
    if at is None:
        at = store.modified(layout.epoch(epoch))
    if at is None:
        raise NotFoundError(f"{store.url} has no {layout.epoch(epoch)}.")
    return max(0.0, store.now() - at)


def liveness(claim: Claim) -> Literal["released", "dead", "alive", "unknown"]:
    """Return what can be known of an owner from here: processes of other machines are unknown."""
    if claim.released:
        return "released"
    if claim.host != socket.gethostname() or claim.boot_id != boot_id():
        return "unknown"
    return "alive" if process_started(claim.process) == claim.process_started else "dead"


def boot_id() -> str:
    """Return what process ids belong to: one start of a machine, and there one namespace; empty where nothing tells."""
    path, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if not path.exists() or not namespace.is_symlink():
        return ""
    # Containers that use the network of their machine have its name, but processes of their own.
    return f"{path.read_text().strip()} {os.readlink(namespace)}"


def process_started(process: int) -> str | None:
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
