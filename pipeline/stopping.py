"""Asking a driver to stop."""

import threading
from typing import final


@final
class StopRequest:
    """Whether a driver has been asked to stop; it looks between tasks, so that what is under way may still be committed."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def request(self) -> None:
        """Ask it; may be called from any thread and from signal handlers, and more than once."""
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether it has been asked."""
        return self._event.is_set()
