"""Asking somebody a question again and again who may take long to answer."""

import signal
import threading
from collections.abc import Callable, Iterable
from typing import final

JOIN_SECONDS = 2.0
"""For a question that is under way to be answered; one that is not is left behind."""


@final
class Asking:
    """The latest answer to a question, which a thread asks now and then; a context manager.

    Args:
        question: Returns names; whatever it raises is kept.
        seconds: Between an answer and the next question.
    """

    def __init__(self, question: Callable[[], Iterable[str]], seconds: float) -> None:
        self._question = question
        self._seconds = seconds
        self._answer: frozenset[str] = frozenset()
        self._trouble: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="ntkpipe-asking", daemon=True)

    def __enter__(self) -> "Asking":
        """Begin to ask."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    @property
    def answer(self) -> frozenset[str]:
        """The latest one; nothing before there is one."""
        return self._answer

    @property
    def trouble(self) -> str | None:
        """Why the first question failed that did; None as long as none has."""
        return self._trouble

    def _ask(self) -> None:
        # Signals are for the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        while True:
            try:
                self._answer = frozenset(self._question())
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever asked has other things to do
                self._trouble = self._trouble or f"{type(error).__name__}: {error}"
            if self._stop.wait(self._seconds):
                return
