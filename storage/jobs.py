"""The jobs that were submitted to clusters to drive a run: who asks the run finds the job, whatever the cluster remembers."""

import re
from contextlib import suppress
from typing import Literal

from pydantic import Field

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.documents import Record
from ntkpipe.storage.stores.base import AbstractStore

SUBMISSION_ID = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"
"""It becomes a part of paths, here and on the cluster, and of URLs."""

JobVerb = Literal["submit", "resume"]


class JobRecord(Record):
    """A job that was given to a cluster, or was about to be."""

    schema_version: Literal[2] = 2
    submission_id: str = Field(pattern=f"^{SUBMISSION_ID}$")
    address: str
    """Of the cluster's job server, without credentials. Whoever can write to the run can write this: a token is sent
    there only if its user has used the address before."""
    submitted_at: float
    verb: JobVerb
    epoch: int = Field(ge=1)
    """That its driver was to have."""
    attempt: int = Field(ge=1)
    """Among the jobs for this epoch."""
    seal: str = ""
    """Of the document, set when it is encoded."""


def record_job(store: AbstractStore, record: JobRecord) -> bool:
    """Note a job down; return False if there is a record of its id already.

    Raises:
        StorageError: The store does not take it.
    """
    return store.put_new(layout.job(record.submission_id), record.encode())


def recorded_jobs(store: AbstractStore) -> list[JobRecord]:
    """Return the jobs of a run, the latest last; one whose record is damaged is passed over."""
    found = []
    for key, data in store.get_many(name for name in store.names(layout.JOBS) if _KEY.fullmatch(name)):
        with suppress(StorageError):
            if data is not None:
                found.append(JobRecord.parse(data, f"{store.url}/{key}"))
    return sorted(found, key=lambda record: (record.epoch, record.attempt, record.submitted_at))


_KEY = re.compile(rf"{layout.JOBS}/{SUBMISSION_ID}\.json")
