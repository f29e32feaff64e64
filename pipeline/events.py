"""What happens in a run, as data: progress for whoever watches, and lines of JSON in the run itself."""

import json
import time
from contextlib import suppress
from typing import Any, Protocol, final

from ntkpipe.configs.errors import StorageError
from ntkpipe.configs.secrets import redacted_values
from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore

FLUSH_SECONDS = 5.0


class Progress(Protocol):
    """Whoever watches a run; printing belongs to the command line."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage begins with some of its tasks already finished."""

    def task(self, name: str, num_bytes: int) -> None:
        """A task of the stage was committed."""

    def attempt_failed(self, name: str) -> None:
        """An attempt at a task of the stage has failed."""

    def workers(self, ready: int, wanted: int) -> None:
        """So many workers take tasks now, of those that were asked for."""

    def note(self, text: str) -> None:
        """Something that a person may want to know, such as a task that is tried again."""


@final
class Silent:
    """Watches without a word."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore it."""

    def task(self, name: str, num_bytes: int) -> None:
        """Ignore it."""

    def attempt_failed(self, name: str) -> None:
        """Ignore it."""

    def workers(self, ready: int, wanted: int) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""


@final
class EventLog:
    """The event log of one epoch, written in segments because object stores cannot append."""

    def __init__(self, store: AbstractStore, epoch: int) -> None:
        self._store = store
        self._epoch = epoch
        self._segment = 0
        self._lines: list[str] = []
        self._flushed_at = time.monotonic()

    def add(self, event: str, **fields: Any) -> None:
        """Record an event; it reaches storage within seconds, or when the store works again.

        Raises:
            RunLockedError: The log's driver has been replaced.
        """
        head = {"time": round(time.time(), 3), "epoch": self._epoch, "event": event}
        self._lines.append(json.dumps(head | redacted_values(fields)))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            # What a store that is full or gone does not take goes into the next segment.
            with suppress(StorageError):
                self.flush()

    def flush(self) -> None:
        """Write what has not been written yet.

        Raises:
            StorageError: The store does not take it; it is kept for the next time.
            RunLockedError: The log's driver has been replaced.
        """
        self._flushed_at = time.monotonic()
        if self._lines:
            data = "".join(f"{line}\n" for line in self._lines).encode()
            self._store.put(layout.events(self._epoch, self._segment + 1), data)
            self._segment += 1
            self._lines = []
