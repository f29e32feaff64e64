"""Answers that a client keeps, to be told by the service that they are still right."""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import final

Question = tuple[str, tuple[tuple[str, str | int], ...]]
"""A path and its parameters."""


@final
@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """What was answered, and the service's name for that content."""

    etag: str
    content: bytes


@final
class KeptAnswers:
    """The answers that were used last, up to so many bytes. Thread safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._answers: OrderedDict[Question, KeptAnswer] = OrderedDict()
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        """Of what is kept, questions included."""
        return self._num_bytes

    def get(self, question: Question) -> KeptAnswer | None:
        """Return what was answered, None if it is not kept."""
        with self._lock:
            found = self._answers.get(question)
            if found is not None:
                self._answers.move_to_end(question)
            return found

    def put(self, question: Question, answer: KeptAnswer) -> None:
        """Keep an answer; one that is larger than everything together may be is not kept."""
        num_bytes = _num_bytes(question, answer)
        if num_bytes > self._max_bytes:
            return
        with self._lock:
            replaced = self._answers.pop(question, None)
            self._num_bytes += num_bytes - (0 if replaced is None else _num_bytes(question, replaced))
            self._answers[question] = answer
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= _num_bytes(*self._answers.popitem(last=False))


def _num_bytes(question: Question, answer: KeptAnswer) -> int:
    """Return what is held: positions that lie apart take more than the entries at them."""
    return len(answer.content) + len(question[0]) + sum(len(name) + len(str(value)) for name, value in question[1])
