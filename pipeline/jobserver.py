"""The Jobs API of a Ray cluster: the only module besides the executor that knows Ray, imported when it is asked for.

A server that does not answer holds nobody up for long, no variable of the environment sends a job to another cluster than
the one that was named, and no token is shown or kept.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, final
from urllib.parse import urlsplit

from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobSubmissionClient

from ntkpipe.configs.errors import ConfigError, PlanError
from ntkpipe.pipeline.credentials import token

ANSWER_SECONDS = 15.0
"""Within which a server must answer; a busy one takes a second."""

UPLOAD_SECONDS = 600.0
"""Within which it must have taken a job with its wheels."""

POLL_SECONDS = 1.0

SILENT_SECONDS = 60.0
"""After which a connection that follows a job is renewed."""

State = Literal["pending", "running", "stopped", "succeeded", "failed"]
ALIVE: tuple[State, ...] = ("pending", "running")
_STATES: Mapping[str, State] = {
    state.upper(): state for state in ("pending", "running", "stopped", "succeeded", "failed")
}

# Ray's client tells of every connection that it opens and closes.
for _module in ("job.sdk", "dashboard_sdk"):
    logging.getLogger(f"ray.dashboard.modules.{_module}").setLevel(logging.WARNING)

_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Each takes the place of whatever address Ray's client is given."""

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Job:
    """What a cluster says of a job."""

    submission_id: str
    state: State
    message: str
    exit_code: int | None
    """Of its driver; None while it runs, or where the cluster does not know."""
    started_at: float
    """By the cluster's clock; 0 where it does not know."""
    metadata: Mapping[str, str]

    @property
    def is_alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ALIVE


def checked_address(address: str) -> str:
    """Return the address of a job server in the form in which it is compared and stored.

    Raises:
        ConfigError: It is none, or carries credentials.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigError(
            f"{address!r} is not the address of a Ray job server: expected something like http://HEAD:8265, where the "
            "dashboard of the cluster listens."
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the address of the cluster carries a user or password, which would be stored in the run. Give it without, and "
            "the token of the cluster in RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        )
    return f"{parts.scheme}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


@final
class JobServer:
    """A client of one cluster's job server.

    Args:
        address: Of the server.
        answer_seconds: Within which it must answer.

    Raises:
        ConfigError: The address is none.
        PlanError: From every method: the server does not answer or refuses, or the token is missing or wrong.
    """

    def __init__(self, address: str, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self.address = checked_address(address)
        self._answer_seconds = answer_seconds
        self._token = token()
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else None

        def connect() -> JobSubmissionClient:
            return JobSubmissionClient(self.address, headers=headers)

        with _without(_OVERRIDES):
            self._client = self._ask(connect)

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]
    ) -> bool:
        """Hand a job over; return False if there is one of the same id."""

        def post() -> str:
            return str(
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=dict(runtime_env),
                    metadata=dict(metadata),
                )
            )

        try:
            self._ask(post, UPLOAD_SECONDS)
        except PlanError:
            # Ray has no code of its own for an id that is taken; and a request whose answer was lost may have arrived.
            if self.find(submission_id) is None:
                raise
            return False
        return True

    def find(self, submission_id: str) -> Job | None:
        """Return what the cluster knows of a job, None if it knows none."""

        def get() -> JobDetails | None:
            try:
                return self._client.get_job_info(submission_id)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

        found = self._ask(get)
        return None if found is None else _job(found)

    def jobs(self) -> list[Job]:
        """Return all jobs that were submitted to the cluster."""
        return [_job(found) for found in self._ask(self._client.list_jobs) if found.submission_id]

    def stop(self, submission_id: str) -> bool:
        """Ask a job to end; return whether it was running. Does not wait."""
        return bool(self._ask(lambda: self._client.stop_job(submission_id)))

    def logs(self, submission_id: str) -> str:
        """Return what a job has printed so far."""
        return str(self._ask(lambda: self._client.get_job_logs(submission_id)))

    def follow(
        self, submission_id: str, say: Callable[[str], None], *, skip: int = 0, lost_seconds: float = 60.0
    ) -> Job:
        """Pass on what a job prints until it has ended, and return how; a connection that is lost is taken up again.

        Args:
            submission_id: Of the job.
            say: Is given the text, in pieces.
            skip: So many characters that were passed on before.
            lost_seconds: For how long the server may be gone.

        Raises:
            PlanError: The server is gone, or does not know the job any more.
        """
        passed, heard_at = skip, time.monotonic()

        def hear(text: str) -> None:
            nonlocal passed, heard_at
            passed, heard_at = passed + len(text), time.monotonic()
            say(text)

        while True:
            for error in asyncio.run(self._tail(submission_id, passed, hear)):
                raise error
            try:
                job = self.find(submission_id)
            except PlanError:
                if time.monotonic() - heard_at > lost_seconds:
                    raise
            else:
                if job is None:
                    raise PlanError(f"{self.address} does not know the job {submission_id} any more.")
                if not job.is_alive:
                    rest = self.logs(submission_id)[passed:]
                    if rest:
                        say(rest)
                    return job
                heard_at = time.monotonic()
            time.sleep(POLL_SECONDS)

    async def _tail(self, submission_id: str, skip: int, hear: Callable[[str], None]) -> list[Exception]:
        """Pass on what comes after so many characters until the connection ends; return what went wrong with passing on."""
        # Whatever ends the connection, the state of the job tells whether there is more to come; and a connection that is
        # silent may be dead.
        with suppress(Exception):
            pieces = self._client.tail_job_logs(submission_id)
            while True:
                text = await asyncio.wait_for(anext(pieces), SILENT_SECONDS)
                fresh, skip = text[skip:], max(0, skip - len(text))
                try:
                    hear(fresh)
                except Exception as error:  # noqa: BLE001 - the caller's, which must not be taken for the connection's
                    return [error]
        return []

    def _ask(self, question: Callable[[], _Answer], seconds: float | None = None) -> _Answer:
        """Ask in another thread, because Ray's client waits for an answer as long as it takes."""
        limit, answers, errors = seconds or self._answer_seconds, [], []

        def work() -> None:
            try:
                answers.append(question())
            except Exception as error:  # noqa: BLE001 - passed on below
                errors.append(error)

        thread = threading.Thread(target=work, name="ntkpipe-jobs", daemon=True)
        thread.start()
        thread.join(limit)
        if answers:
            return answers[0]
        raise self._explained(errors[0] if errors else None, limit) from None

    def _explained(self, error: Exception | None, seconds: float) -> PlanError:
        if error is None:
            return PlanError(
                f"{self.address} has not answered for {seconds:g} s. Is the head node of the cluster overloaded?"
            )
        text = str(error).strip()
        if self._token:
            text = text.replace(self._token, "<redacted>")
        if isinstance(error, RayError):
            if not self._token:
                return PlanError(
                    f"{self.address} needs a token, and there is none here. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a "
                    "file that holds it."
                )
            return PlanError(
                f"{self.address} does not accept the token of this machine. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to "
                "the one with which the cluster was started."
            )
        if "ray[default]" in text:
            return PlanError(
                "jobs need Ray's job client, which is not installed here: `pip install 'ntkpipe[cluster]'`."
            )
        if isinstance(error, OSError):
            return PlanError(
                f"nobody answers at {self.address}. Check the address and that the head node is running with its dashboard; "
                "one inside a cluster must be forwarded to this machine first."
            )
        return PlanError(f"{self.address} has refused: {text[:2000]}")


def _job(found: JobDetails) -> Job:
    return Job(
        submission_id=found.submission_id or "",
        state=_STATES[str(getattr(found.status, "value", found.status))],
        message=found.message or "",
        exit_code=found.driver_exit_code,
        started_at=(found.start_time or 0) / 1000,
        metadata=found.metadata or {},
    )


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """Take variables out of the environment for a moment."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
