"""The job of a run: found from the run alone, and asked of its cluster, whose word is news and no more."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ntkpipe.configs.errors import NotFoundError, NtkPipeError, PlanError
from ntkpipe.pipeline.credentials import is_known, remember
from ntkpipe.storage.jobs import JobRecord, recorded_jobs
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store

if TYPE_CHECKING:
    from ntkpipe.pipeline.jobserver import Job, JobServer

NEWS_SECONDS = 4.0
"""That whoever asks a run for its status waits for its cluster."""

RUN_KEY, DIGEST_KEY = "ntkpipe.run", "ntkpipe.digest"
"""Of a job's metadata: the URL of its run, and the digest of its configuration."""


@dataclass(frozen=True, slots=True)
class News:
    """What is known of the job that was submitted last for a run."""

    record: JobRecord
    job: "Job | None" = None
    """What its cluster says; None if it says nothing."""
    trouble: str = ""
    """Why it says nothing."""

    @property
    def is_alive(self) -> bool:
        """Whether the job waits or runs, as far as its cluster says."""
        return self.job is not None and self.job.is_alive


def news_of(store: AbstractStore, address: str | None = None) -> News | None:
    """Ask a cluster for the last job of a run, but not for long; None if there is none. Errors are part of the answer."""
    record = last_job(store)
    if record is None:
        return None
    try:
        job = server_of(record, address, answer_seconds=NEWS_SECONDS).find(record.submission_id)
    except NtkPipeError as error:
        return News(record, trouble=error.message)
    return News(record, job, "" if job else f"{record.address} does not know it (any more)")


def last_job(store: AbstractStore) -> JobRecord | None:
    """Return the job that was submitted last for a run, None if it was never submitted."""
    return next(reversed(recorded_jobs(store)), None)


def server_of(record: JobRecord, address: str | None = None, *, answer_seconds: float | None = None) -> "JobServer":
    """Return the job server that a job is on.

    Args:
        record: Of the job.
        address: Of the cluster, if the user has named it again.
        answer_seconds: Within which it must answer.

    Raises:
        PlanError: It does not answer, or the user has never named it, so that no token may be sent there.
    """
    if address is None and not is_known(record.address):
        raise PlanError(
            f"the run says that its job {record.submission_id} is on {record.address}, a cluster that was never named on "
            f"this machine, so that it is not asked. If it is yours: --address {record.address}"
        )
    return connect(address or record.address, answer_seconds=answer_seconds)


def connect(address: str, *, answer_seconds: float | None = None) -> "JobServer":
    """Return a job server that has answered, and remember that this user has named it.

    Raises:
        ConfigError: The address is none.
        PlanError: It does not answer, or does not let this user in.
    """
    try:
        from ntkpipe.pipeline.jobserver import JobServer
    except ImportError as error:
        raise PlanError(
            f"jobs need Ray's job client, which is not installed here ({error}): `pip install 'ntkpipe[cluster]'`."
        ) from None
    server = JobServer(address) if answer_seconds is None else JobServer(address, answer_seconds=answer_seconds)
    remember(server.address)
    return server


def stop(url: str | os.PathLike[str], *, address: str | None = None) -> "tuple[JobServer, Job]":
    """Ask the job that drives a run to end; does not wait for it.

    Returns:
        The server and the job, which may have ended before.

    Raises:
        NotFoundError: The run was never submitted, or the cluster does not know its job any more.
        PlanError: The cluster does not answer.
    """
    store = open_store(url)
    record = last_job(store)
    if record is None:
        Manifest.read(store)  # says so if it is no run at all
        raise NotFoundError(
            f"{store.url} was never submitted to a cluster. If a process drives it, `ntkpipe status` says which; end that with SIGTERM."
        )
    server = server_of(record, address)
    job = server.find(record.submission_id)
    if job is None:
        raise NotFoundError(
            f"{server.address} does not know the job {record.submission_id}: the cluster was started anew, or is another one."
        )
    if job.is_alive:
        server.stop(job.submission_id)
    return server, job
