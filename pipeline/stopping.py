"""Asking a driver to stop: once for an orderly end within a time of grace, twice to leave at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from ntkpipe.configs.errors import RunStoppedError

STOPPED = (
    "the driver was told to stop. Everything that was committed is safe, and solvers keep the states that they have "
    "stored; `ntkpipe resume` goes on from there."
)


class Leave(BaseException):
    """Ends the main thread where it is; no ``except Exception`` of a task may take it for its own failure."""


@contextmanager
def leaving_compiled_code() -> Iterator[None]:
    """Let :class:`Leave` out of a library in C, which hides what a handler of signals has raised behind an error of its own."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, Leave):
            raise error.__cause__ from None
        raise


@final
class StopRequest:
    """Whether a driver has been asked to stop; it looks between tasks, so that what is under way may still be committed.

    Before a driver has promised to look (:meth:`heeded`) there is nothing that it could commit: listeners leave at once.
    """

    def __init__(self) -> None:
        self._grace_seconds = 0.0
        # A plain value: a handler that interrupts its own thread must not wait for a lock that the thread holds.
        self._requested_at: float | None = None
        self._timer: threading.Timer | None = None
        # Held by the timer's thread as it sends its signal, and by whoever ends the timer; no handler takes it.
        self._sending = threading.Lock()
        self._leaving = False

    def request(self) -> None:
        """Ask it; may be called from any thread and from signal handlers, and more than once."""
        if self._requested_at is None:
            self._requested_at = time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether it has been asked."""
        return self._requested_at is not None

    @property
    def is_over(self) -> bool:
        """Whether it has been asked, and its time of grace has ended."""
        return self._requested_at is not None and time.monotonic() - self._requested_at >= self._grace_seconds

    @contextmanager
    def heeded(self, grace_seconds: float) -> Iterator[None]:
        """Promise to look between tasks, and to leave so many seconds after being asked."""
        self._grace_seconds = grace_seconds
        try:
            yield
        finally:
            self._grace_seconds = 0.0
            self._end_timer()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take a SIGTERM for a request, and a second one, or the end of the time of grace, for an order to leave at once.

        Only of use in the main thread, where Python runs the handlers of signals; elsewhere nothing is listened to. A
        library that computes for long without running any Python, such as a large factorisation, is left only afterwards.

        Raises:
            RunStoppedError: The order was followed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._hear)
        try:
            yield
        except Leave:
            raise RunStoppedError(STOPPED) from None
        finally:
            # Whatever has been sent by now has nobody to tell any more, and must not meet the handler that was there before.
            self._leaving = True
            self._end_timer()
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            self._leaving = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """Handle a SIGTERM, in the main thread."""
        if self._leaving:
            return
        if self.requested or not self._grace_seconds:
            self.request()
            self._grace_seconds, self._leaving = 0.0, True
            raise Leave
        self.request()
        self._timer = threading.Timer(self._grace_seconds, self._hurry)
        self._timer.daemon = True
        self._timer.start()

    def _hurry(self) -> None:
        """Send the second signal to whatever the main thread is in the middle of."""
        main = threading.main_thread().ident
        with self._sending:
            if self._timer is not None and main is not None:
                signal.pthread_kill(main, signal.SIGTERM)

    def _end_timer(self) -> None:
        """See to it that no signal is sent from now on."""
        with self._sending:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
