"""What happens in a run, as data: progress for whoever watches, and lines of JSON in the run itself.

The log of a run is ``events/<epoch>/<n>.jsonl``, one event a line. Every event has ``time`` (seconds since 1970 by the
clock of the machine that drives), ``epoch`` and ``event``, its name. Fields that a version did not know are missing, so
that whoever reads a log expects none of them.

=========  ==================================================================================================
event      fields
=========  ==================================================================================================
start      ``host``, ``process``: a driver begins its tenure
reuse      ``text``: what was taken over from another run
stage      ``stage``, ``done``, ``total``: a stage begins, with some of its tasks already finished
worker     ``worker``, ``state`` (ready, draining, lost, ended, unknown), ``host``, ``device``, ``pool`` (of the
           configuration, by its number), ``message``; one that has not answered yet has no name
commit     ``stage``, ``task``, ``seconds`` (spent by the worker), ``bytes`` (written), ``bytes_read``, ``chunks_read``,
           ``peak_bytes`` (the most memory that the worker's process has held so far), ``worker``, ``attempt``
failure    ``stage``, ``task``, ``kind``, ``message``, ``verdict`` (again, aside, left-out, end), ``worker``: an attempt
           has failed; without a verdict the driver was about to stop
holes      ``stage``, ``set_aside``, ``left_out``: a stage has ended without so many of its tasks
finish     ``set_aside``, ``left_out``: the run has ended
stop       ``kind``, ``message``: the driver has ended before the run did
=========  ==================================================================================================

``worker`` is ``host:process``. A driver that is killed says nothing at its end.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

from ntkpipe.configs.secrets import redacted_values
from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore

Listener = Callable[[str, Mapping[str, Any]], None]
"""Is told every event with its fields, as it happens."""

LATEST = 1e11
"""Seconds since 1970, in the sixth millennium: an event that is dated later, or before 1970, is damaged."""

LARGEST = 1e18
"""A larger number in a field is no amount of anything."""

SEGMENT = re.compile(rf"{layout.EVENTS}/(?P<epoch>\d{{6,}})/(?P<number>\d{{6,}})\.jsonl")


class Progress(Protocol):
    """Whoever watches a run; printing belongs to the command line. Stages may be under way at the same time."""

    def stage(self, name: str, done: int, total: int) -> None:
        """A stage begins with some of its tasks already finished."""

    def task(self, name: str, num_bytes: int) -> None:
        """A task of the stage was committed."""

    def attempt_failed(self, name: str) -> None:
        """An attempt at a task of the stage has failed."""

    def workers(self, ready: int, wanted: int) -> None:
        """So many workers take tasks now, of those that were asked for; told of changes, and every few seconds."""

    def note(self, text: str) -> None:
        """Something that a person may want to know, such as a task that is tried again."""


class Observer(Progress, Protocol):
    """Watches a run and hears its events, too."""

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """An event with its fields."""


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
class Watchers:
    """Several who watch the same run, told in turn."""

    def __init__(self, *watchers: Progress) -> None:
        self._watchers = watchers

    def stage(self, name: str, done: int, total: int) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.stage(name, done, total)

    def task(self, name: str, num_bytes: int) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.task(name, num_bytes)

    def attempt_failed(self, name: str) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.attempt_failed(name)

    def workers(self, ready: int, wanted: int) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.workers(ready, wanted)

    def note(self, text: str) -> None:
        """Tell all."""
        for watcher in self._watchers:
            watcher.note(text)


@final
class EventLog:
    """The event log of one epoch, written in segments because object stores cannot append.

    Whoever adds events does not wait for the store: another thread is to call :meth:`flush` every few seconds.

    Args:
        store: Of the run.
        epoch: Of the driver.
    """

    def __init__(self, store: AbstractStore, epoch: int) -> None:
        self._store = store
        self._epoch = epoch
        self._listeners: list[Listener] = []
        self._segment = 0
        self._lines: list[str] = []
        self._changing = threading.Lock()
        self._flushing = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Tell a listener of every event from now on, as it is recorded."""
        self._listeners.append(listener)

    def add(self, event: str, **fields: Any) -> None:
        """Record an event; the next flush takes it to the store."""
        head = {"time": round(time.time(), 3), "epoch": self._epoch, "event": event}
        line = json.dumps(head | redacted_values(fields))
        with self._changing:
            self._lines.append(line)
        for listener in self._listeners:
            listener(event, fields)

    def flush(self) -> None:
        """Write what has not been written yet.

        Raises:
            StorageError: The store does not take it; it is kept for the next time.
            RunLockedError: The log's driver has been replaced.
        """
        with self._flushing:
            with self._changing:
                lines = list(self._lines)
            if lines:
                data = "".join(f"{line}\n" for line in lines).encode()
                self._store.put(layout.events(self._epoch, self._segment + 1), data)
                self._segment += 1
                with self._changing:
                    del self._lines[: len(lines)]


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a log. Nothing is certain of its fields: other versions, or other people, may have written them."""

    epoch: int
    """By the name of the segment."""
    time: float
    name: str
    fields: Mapping[str, Any]

    def number(self, field: str, default: float = 0.0) -> float:
        """Return a field that is an amount, not below 0; ``default`` for anything else."""
        value = _amount(self.fields.get(field), LARGEST)
        return default if value is None else value

    def text(self, field: str, default: str = "") -> str:
        """Return a field that is a text; ``default`` for anything else."""
        value = self.fields.get(field)
        return value if isinstance(value, str) else default


def read_events(store: AbstractStore, damaged: Callable[[str], None] = lambda _: None) -> Iterator[Event]:
    """Yield the events of all epochs in order; memory is O(one segment).

    Args:
        store: Of the run.
        damaged: Is told what cannot be read, in words; the rest is yielded all the same.

    Raises:
        StorageError: The store fails.
    """
    found = (SEGMENT.fullmatch(key) for key in store.names(layout.EVENTS))
    segments = sorted((int(match["epoch"]), int(match["number"]), match[0]) for match in found if match)
    before = (0, 0)
    for epoch, number, key in segments:
        expected = before[1] + 1 if epoch == before[0] else 1
        if number > expected:
            damaged(f"{layout.events(epoch, expected)} is missing")
        before = epoch, number
        for line_number, line in enumerate((store.get(key) or b"").split(b"\n"), 1):
            event = _parse(epoch, line) if line else None
            if event is not None:
                yield event
            elif line:
                damaged(f"{key}, line {line_number}, cannot be read")


def _parse(epoch: int, line: bytes) -> Event | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    at, name = _amount(fields.get("time"), LATEST), fields.get("event")
    return Event(epoch, at, name, fields) if at is not None and isinstance(name, str) else None


def _amount(value: Any, largest: float) -> float | None:
    """Return a number from 0 to another one, None for anything else; NaN is not."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value <= largest else None
