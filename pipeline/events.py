"""What happens in a run, as data: progress for whoever watches, and lines of JSON in the run itself."""

import json
import time
from typing import Any, Protocol, final

from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore

FLUSH_SECONDS = 5.0


class Progress(Protocol):
    """Whoever watches a run; printing belongs to the command line."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage begins with some of its tasks already finished."""

    def task(self, name: str, num_bytes: int) -> None:
        """A task of the stage was committed."""

    def note(self, text: str) -> None:
        """Something that a person may want to know, such as a task that is tried again."""


@final
class Silent:
    """Watches without a word."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore it."""

    def task(self, name: str, num_bytes: int) -> None:
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
        """Record an event; it reaches storage within seconds."""
        self._lines.append(json.dumps({"time": round(time.time(), 3), "epoch": self._epoch, "event": event} | fields))
        if time.monotonic() - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what has not been written yet."""
        if self._lines:
            self._segment += 1
            data = "".join(f"{line}\n" for line in self._lines).encode()
            self._store.put(layout.events(self._epoch, self._segment), data)
            self._lines = []
        self._flushed_at = time.monotonic()
