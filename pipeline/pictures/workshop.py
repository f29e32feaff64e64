"""What takes longer than a request may wait: made once in the background, however many ask, and kept as memory allows."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures import wait as wait_for
from copy import copy
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Final, Protocol, TypeVar, cast, final

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.pipeline.pictures.progress import NotWantedError, Progress

AT_ONCE: Final = 2
"""Things that are made side by side; others wait for their turn."""

THREAD_NAME: Final = "workshop"
"""With which the names of the threads begin that make pieces."""

PARTING_SECONDS: Final = 0.5
"""For which closing waits for what is being made."""

MAX_FAILURES: Final = 64
"""That wait to be told."""


class Piece(Protocol):
    """What can be kept."""

    @property
    def nbytes(self) -> int:
        """Of memory."""
        ...

    @property
    def stale_after(self) -> float:
        """Seconds after which it is worth making again; infinite for what does not change."""
        ...


Made = TypeVar("Made", bound=Piece)


@dataclass(frozen=True, slots=True)
class Building:
    """It is not ready yet."""

    done_fraction: float


@dataclass(slots=True)
class _Job:
    future: "Future[Any]"
    progress: Progress
    asked_at: float = field(default_factory=time.monotonic)


@final
class Workshop:
    """Makes pieces in threads of its own. Thread safe.

    Args:
        max_bytes: Of pieces that are kept; those that were asked for least recently are dropped first.
        wait_seconds: For which who asks waits for what is not ready.
        patience_seconds: For which nobody may ask before a piece in the making is given up.
    """

    def __init__(self, max_bytes: int, *, wait_seconds: float = 0.5, patience_seconds: float = 60.0) -> None:
        self._max_bytes = max_bytes
        self._wait_seconds = wait_seconds
        self._patience_seconds = patience_seconds
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=THREAD_NAME)
        self._kept: OrderedDict[Hashable, tuple[Piece, float]] = OrderedDict()
        self._jobs: dict[Hashable, _Job] = {}
        self._failed: OrderedDict[Hashable, NtkPipeError] = OrderedDict()
        self._closed = False
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        """Of the pieces that are kept."""
        with self._lock:
            return sum(piece.nbytes for piece, _ in self._kept.values())

    def ask(self, key: Hashable, make: Callable[[Progress], Made], *, patient: bool = False) -> Made | Building:
        """Return a piece, or how far it is; starts to make it if nobody has asked before.

        A piece that is out of date is returned until a newer one is ready. What went wrong in the making is raised to
        who asks next, and tried again after that.

        Args:
            key: Equal keys mean equal pieces.
            make: Makes it, counting what is done; in another thread.
            patient: Wait until it is ready, however long that takes.
        """
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                if time.monotonic() - found[1] < found[0].stale_after:
                    return cast(Made, found[0])
            error = self._failed.pop(key, None)
            if error is not None:
                raise error
            job, is_new = self._jobs.get(key), False
            if job is None:
                job, is_new = self._start(key, make), True
            job.asked_at = time.monotonic()
        if is_new:
            job.future.add_done_callback(lambda _: self._finish(key, job))
        try:
            seconds = None if patient else self._wait_seconds
            made: Made = job.future.result(0 if found is not None else seconds)
        except (FutureTimeoutError, CancelledError, NotWantedError):
            return cast(Made, found[0]) if found is not None else Building(job.progress.done_fraction)
        except Exception as failure:  # noqa: BLE001 - whatever it is, it is raised to who asked
            with self._lock:
                self._failed.pop(key, None)
            # One exception that several threads raise would gather all their tracebacks.
            raise copy(failure) from None
        return made

    def close(self) -> None:
        """Give up what is being made.

        What counts its tiles ends with the next one, and is waited for. What does not, such as a spectrum or the loading of
        a data set, is left behind: its thread goes on, and Python would not end before it.
        """
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            futures = [job.future for job in self._jobs.values()]
        wait_for(futures, PARTING_SECONDS)

    def _start(self, key: Hashable, make: Callable[[Progress], Made]) -> _Job:
        progress = Progress(wanted=lambda: self._is_wanted(job))
        job = _Job(Future(), progress)
        job.future = self._pool.submit(make, progress)
        self._jobs[key] = job
        return job

    def _is_wanted(self, job: _Job) -> bool:
        return not self._closed and time.monotonic() - job.asked_at < self._patience_seconds

    def _finish(self, key: Hashable, job: _Job) -> None:
        with self._lock:
            del self._jobs[key]
            error = None if job.future.cancelled() else job.future.exception()
            if error is not None:
                if isinstance(error, NtkPipeError):
                    self._failed[key] = error
                    while len(self._failed) > MAX_FAILURES:
                        self._failed.popitem(last=False)
            elif not job.future.cancelled():
                self._keep(key, job.future.result())

    def _keep(self, key: Hashable, piece: Piece) -> None:
        self._kept[key] = (piece, time.monotonic())
        self._kept.move_to_end(key)
        total = sum(kept.nbytes for kept, _ in self._kept.values())
        while total > self._max_bytes and len(self._kept) > 1:
            _, (dropped, _) = self._kept.popitem(last=False)
            total -= dropped.nbytes
