"""How fast a run is, as its driver says now and then: for whoever watches, never for whoever counts.

Receipts tell what is finished. This document tells what they cannot: rates, time left, workers. It is overwritten, may be
a few seconds old, and counts as not there if it is damaged.
"""

from typing import Annotated, Literal, Self

from pydantic import Field

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.documents import Record
from ntkpipe.storage.stores.base import AbstractStore

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LiveStage(Record):
    """A stage, as its driver sees it."""

    stage: str
    done: Count
    """Tasks that are finished, those of earlier drivers included."""
    total: Count
    failed_attempts: Count
    """In this tenure."""
    set_aside: Count
    """In this tenure: tasks that failed on every attempt they were allowed."""
    num_bytes: Count
    """Written in this tenure."""
    tasks_per_second: Amount
    """Of late."""
    bytes_per_second: Amount
    """Of late, written."""
    seconds_left: Amount | None
    """At that rate; None where nothing tells."""


class LiveStatus(Record):
    """What a driver says of its run."""

    schema_version: Literal[2] = 2
    epoch: int
    host: str
    process: int
    updated_at: Amount
    """By the driver's own clock; for people to read. The store's date of the document tells how old it is."""
    ended: bool
    """Whether the driver has said its last word."""
    workers_ready: Count | None
    """That take tasks; None before anybody has told."""
    workers_wanted: Count | None
    stages: tuple[LiveStage, ...]
    """That have begun, in this order."""
    seal: str = ""
    """Of the document, set when it is encoded."""

    @classmethod
    def read(cls, store: AbstractStore) -> Self | None:
        """Return what the last driver has said; None if it has not, or nobody can tell.

        Raises:
            StorageError: The store fails.
        """
        data = store.get(layout.STATUS)
        try:
            return None if data is None else cls.parse(data, f"{store.url}/{layout.STATUS}")
        except StorageError:
            return None
