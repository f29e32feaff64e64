"""Writing ``status.json``, and the log of events: what a driver tells every few seconds, and at its end."""

import os
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, final

from ntkpipe.configs.errors import RunLockedError, StorageError
from ntkpipe.pipeline.events import EventLog
from ntkpipe.pipeline.meters import Clock, Meters
from ntkpipe.storage import layout
from ntkpipe.storage.live import LiveStage, LiveStatus
from ntkpipe.storage.stores.base import AbstractStore

WRITE_SECONDS = 5.0


@final
class StatusFile:
    """A :class:`~ntkpipe.pipeline.events.Progress` that writes what it counts; a context manager.

    A thread writes, because a driver that computes in its own process, or waits for a store, says nothing for long. The
    log of events is written by it, too: what has happened is in the store seconds later, whatever becomes of the driver. A
    store that is full or gone ends nothing: the next time is tried again.

    Args:
        store: Of the run, that refuses to write once there is another driver.
        epoch: Of the driver.
        log: Of this tenure.
        seconds: Between two times.
        clock: That rates are taken from.
    """

    def __init__(
        self,
        store: AbstractStore,
        epoch: int,
        log: EventLog,
        *,
        seconds: float = WRITE_SECONDS,
        clock: Clock = time.monotonic,
    ) -> None:
        self._store = store
        self._epoch = epoch
        self._log = log
        self._seconds = seconds
        self._meters = Meters(clock)
        self._set_aside: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_now_and_then, name="ntkpipe-status", daemon=True)

    def __enter__(self) -> "StatusFile":
        """Begin to write."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write for the last time."""
        self._stop.set()
        self._thread.join()
        # Whatever ends the run must not be hidden; a driver that was replaced says nothing more.
        with suppress(StorageError, RunLockedError):
            self.write(ended=True)

    def stage(self, name: str, done: int, total: int) -> None:
        """Count a stage."""
        with self._lock:
            self._meters.stage(name, done, total)

    def task(self, name: str, num_bytes: int) -> None:
        """Count a task."""
        with self._lock:
            self._meters.task(name, num_bytes)

    def attempt_failed(self, name: str) -> None:
        """Count a failure."""
        with self._lock:
            self._meters.attempt_failed(name)

    def workers(self, ready: int, wanted: int) -> None:
        """Keep how many there are."""
        with self._lock:
            self._meters.workers(ready, wanted)

    def note(self, text: str) -> None:
        """Ignore it: the log has it."""

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Count tasks that are set aside, of which only the log of events is told."""
        if event == "failure" and fields.get("verdict") == "aside":
            with self._lock:
                self._set_aside[fields["stage"]] += 1

    def write(self, *, ended: bool = False) -> None:
        """Write what is known now.

        Raises:
            StorageError: The store does not take it.
            RunLockedError: The driver has been replaced.
        """
        with self._lock:
            document = self._document(ended).encode()
        self._store.put(layout.STATUS, document)

    def _write_now_and_then(self) -> None:
        # Signals are for the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while not self._stop.wait(self._seconds):
            for write in (self._log.flush, self.write):
                try:
                    write()
                except RunLockedError:
                    return
                except StorageError:
                    continue

    def _document(self, ended: bool) -> LiveStatus:
        meters = self._meters
        stages = []
        for name, meter in meters.stages.items():
            tasks, num_bytes = meter.rates()
            stages.append(
                LiveStage(
                    stage=name,
                    done=meter.done,
                    total=meter.total,
                    failed_attempts=meters.failed[name],
                    set_aside=self._set_aside[name],
                    num_bytes=meter.num_bytes,
                    tasks_per_second=round(tasks, 6),
                    bytes_per_second=round(num_bytes, 1),
                    seconds_left=meter.seconds_left,
                )
            )
        return LiveStatus(
            epoch=self._epoch,
            host=platform.node(),
            process=os.getpid(),
            updated_at=time.time(),
            ended=ended,
            workers_ready=meters.ready,
            workers_wanted=meters.wanted,
            stages=tuple(stages),
        )
