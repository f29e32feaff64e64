"""Keeping a driver that has been replaced, and its workers, from writing: every write asks whether there is a successor."""

import math
import time
from collections.abc import Iterable
from typing import final

from ntkpipe.configs.errors import RunLockedError
from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.wrapper import AbstractWrapper


def check_epoch(store: AbstractStore, epoch: int) -> None:
    """Refuse to go on when the epoch after a tenure's own exists; one request. A takeover always creates that one.

    Raises:
        RunLockedError: The driver of this tenure was thought dead and has been replaced.
    """
    if store.exists(layout.epoch(epoch + 1)):
        raise RunLockedError(
            f"{store.url}: the driver of epoch {epoch} was silent for longer than its lease and epoch {epoch + 1} has "
            "taken over; it stops without writing. Raise store.lease_seconds if the machine was only slow."
        )


@final
class FencedStore(AbstractWrapper):
    """A run's place as one tenure may use it: reading is free, every write looks for a successor first.

    Between the look and the write there is always a moment in which a process can be stopped for as long as a lease;
    what it then writes are the bytes that its successor writes too.

    Args:
        store: The place.
        epoch: Of the tenure.
        trust_seconds: For how long a look counts for what replaces objects by :meth:`put` and :meth:`copy`. A worker writes
            many chunks that only its own task writes, and a look costs as much as a small write in an object store.
    """

    def __init__(self, store: AbstractStore, epoch: int, *, trust_seconds: float = 0.0) -> None:
        super().__init__(store)
        self._epoch = epoch
        self._trust_seconds = trust_seconds
        self._looked_at = -math.inf

    def check(self) -> None:
        """Refuse to write when there is a successor.

        Raises:
            RunLockedError: There is one.
        """
        before = _now()
        check_epoch(self._store, self._epoch)
        self._looked_at = before

    def _check_now_and_then(self) -> None:
        if _now() - self._looked_at >= self._trust_seconds:
            self.check()

    def put_new(self, key: str, data: bytes) -> bool:
        """Look, then create."""
        self.check()
        return self._store.put_new(key, data)

    def put(self, key: str, data: bytes) -> None:
        """Look, unless that was a moment ago, then replace."""
        self._check_now_and_then()
        self._store.put(key, data)

    def delete(self, key: str) -> None:
        """Look, then remove."""
        self.check()
        self._store.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Look, then remove."""
        self.check()
        self._store.delete_many(keys)

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Look, unless that was a moment ago, then copy."""
        self._check_now_and_then()
        self._store.copy(source, source_key, key)


def _now() -> float:
    """Return the seconds of a clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
