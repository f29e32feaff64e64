"""Where a driver writes down what has happened: a run's ledger, lock and log, or those of a simulation."""

from collections.abc import Callable, Sequence
from typing import Protocol

from ntkpipe.storage.records import Failure, Receipt


class Commits(Protocol):
    """What a driver needs of a ledger."""

    def committed(self, stage: str) -> frozenset[str]:
        """Return the ids of a stage's finished tasks."""

    def commit_at_once(self, receipts: Sequence[Receipt]) -> None:
        """Finish tasks."""

    def record_failure(self, failure: Failure) -> None:
        """Record what went wrong with an attempt."""

    def compact(self, epoch: int, check: Callable[[], None]) -> object:
        """Move receipts together where there are very many."""


class Tenure(Protocol):
    """What a driver needs of its lock."""

    @property
    def epoch(self) -> int:
        """Its number."""

    def check(self) -> None:
        """Refuse to go on if there is a successor."""

    def look(self) -> None:
        """The same, where nothing is about to be written."""


class Log(Protocol):
    """What a driver needs of an event log."""

    def add(self, event: str, **fields: object) -> None:
        """Record an event."""
