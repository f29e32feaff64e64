"""Runs as jobs of a Ray cluster: submit them, find them again from the run alone, stop them. Needs no torch.

A job is one driver's tenure of a run, so that its id follows from the run and from the epoch that its driver is to claim:
who submits twice finds the first job. Truth is in the run's storage; what the cluster says of a job is news, no more.
"""

import hashlib
import json
import math
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ntkpipe
from ntkpipe.configs.canonical import differences
from ntkpipe.configs.errors import (
    ConfigError,
    NotFoundError,
    RunLockedError,
    RunMismatchError,
)
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.jobs import DIGEST_KEY, RUN_KEY, connect
from ntkpipe.pipeline.status import RunStatus, read_status
from ntkpipe.pipeline.wheels import Wheel, prepared, read_wheels
from ntkpipe.storage import layout
from ntkpipe.storage.jobs import JobRecord, JobVerb, record_job, recorded_jobs
from ntkpipe.storage.locks import current_epoch
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.stores.writable import open_for_writing

if TYPE_CHECKING:
    from ntkpipe.pipeline.jobserver import Job, JobServer

CONFIG_VARIABLE = "NTKPIPE_CONFIG"
VERSION_VARIABLE = "NTKPIPE_EXPECTED_VERSION"
JOB_VARIABLE = "NTKPIPE_JOB"
MAX_CONFIG_BYTES = 115_000
"""As JSON within JSON, as Ray passes it on: Linux starts no process with a variable or argument of 128 KiB."""

STOP_MARGIN_SECONDS = 10
"""After the time of grace a driver still ends its workers and releases the run; then Ray kills it."""

FIND_PYTHON = (
    "python=$(command -v python || command -v python3) || "
    "{ echo 'ntkpipe: no python is on the PATH of the head node; name one with --python' >&2; exit 127; }; exec \"$python\""
)

Source = str | Path | Mapping[str, Any] | RunConfig
Url = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a run that was to be carried out by a cluster."""

    url: str
    """Of the run."""
    address: str
    """Of the cluster's job server."""
    submission_id: str
    """Of its job; empty if the run is finished."""
    outcome: Literal["submitted", "attached", "finished"]
    """``attached``: there was a job for it already, which waits or runs."""


@dataclass(frozen=True, slots=True)
class _Shipment:
    """How a job runs on the cluster."""

    wheels: Sequence[Wheel]
    python: str
    verb: JobVerb


def submit(
    config: Source,
    out: Url | None = None,
    *,
    address: str,
    overrides: Sequence[str] = (),
    wheels: Sequence[str | Path] = (),
    python: str = "",
) -> Submission:
    """Have a cluster carry out a configuration: start the run, or finish it if it has been started.

    Args:
        config: As for :func:`ntkpipe.run`, carried out by Ray whatever its executor; may name code and files that only the
            cluster has.
        out: Path or URL of the run, which this machine and all nodes must see; ``runs/<name>-<time>`` by default.
        address: Of the cluster's job server, such as ``http://HEAD:8265``.
        overrides: ``key=value`` assignments applied to the configuration.
        wheels: Code to be shipped: the user's, and ntkpipe's own where the cluster does not have it. What they require
            must be installed there.
        python: The interpreter on the head node; by default the first on its PATH.

    Raises:
        ConfigError: The configuration, a wheel, the address or the place of the run is not acceptable.
        PlanError: The cluster does not answer or does not let this user in.
        RunMismatchError: There is a run of another configuration.
        RunLockedError: A driver that is no job of this cluster is working on the run.
    """
    checked = load_config(config, [*overrides, *_on_cluster()])
    url = os.fspath(out) if out is not None else f"runs/{checked.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return _submit(url, checked, address, _Shipment(read_wheels(wheels), python, "submit"))


def resume_on(
    url: Url, *, address: str, overrides: Sequence[str] = (), wheels: Sequence[str | Path] = (), python: str = ""
) -> Submission:
    """Have a cluster finish a run; arguments and errors are those of :func:`submit`.

    Raises:
        NotFoundError: There is no run.
        NtkPipeError: As for :func:`submit`.
    """
    store = open_store(url)
    if store.get(layout.MANIFEST) is None and recorded_jobs(store):
        raise NotFoundError(
            f"{store.url} was submitted, but no driver has begun it, so that there is nothing to resume: submit it again."
        )
    manifest = Manifest.read(store)
    config = load_config(manifest.config, [*overrides, *_on_cluster()], stored=True)
    return _submit(os.fspath(url), config, address, _Shipment(read_wheels(wheels), python, "resume"))


def submission_id(url: str, name: str, epoch: int, attempt: int) -> str:
    """Return the id of the job that is to drive a run in an epoch; ``attempt`` counts the jobs that did not get that far."""
    suffix = "" if attempt == 1 else f"-{attempt}"
    return f"ntkpipe-{name[:60]}-{hashlib.sha256(url.encode()).hexdigest()[:12]}-e{epoch}{suffix}"


def entrypoint(url: str, python: str = "") -> str:
    """Return the command line of a job, for the shell of the head node, whose PATH need not have the ntkpipe command."""
    start = f"exec {shlex.quote(python)}" if python else FIND_PYTHON
    return f"{start} -m ntkpipe {shlex.join(('run', f'env:{CONFIG_VARIABLE}', '--out', url, '--or-resume'))}"


def check_version() -> None:
    """Refuse to run a job that another version of ntkpipe has submitted.

    Raises:
        ConfigError: Names both versions.
    """
    expected = os.environ.get(VERSION_VARIABLE, "")
    if expected and expected != ntkpipe.__version__:
        raise ConfigError(
            f"this job expects ntkpipe {expected}, but {Path(ntkpipe.__file__).parent} on this node is ntkpipe "
            f"{ntkpipe.__version__}. Install {expected} on the cluster, submit from a machine that has "
            f"{ntkpipe.__version__}, or ship the wheel of {expected} with --wheel."
        )


def check_place(out: str) -> None:
    """Refuse to drive a run that this node does not see where it was submitted; does nothing where no job is driven.

    Raises:
        ConfigError: The folder is not shared.
    """
    name = os.environ.get(JOB_VARIABLE, "")
    if name and not open_store(out).exists(layout.job(name)):
        raise ConfigError(
            f"{out} on this node ({socket.gethostname()}) is not the place where the job {name} was submitted: it has no "
            f"{layout.job(name)}. All nodes, and the machine that submits, must see the same folder under this path; or use a "
            "bucket."
        )


def _on_cluster() -> tuple[str, ...]:
    return "resources.executor=ray", "resources.address=auto"


def _submit(url: str, config: RunConfig, address: str, shipment: _Shipment) -> Submission:
    size = len(json.dumps(_text(config)))
    if size > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"the configuration has {size:,} bytes as JSON; a job carries at most {MAX_CONFIG_BYTES:,}. Put long lists into a "
            "file or a callable that the configuration names."
        )
    if not open_store(url).shared:
        raise ConfigError(f"{url} exists in this process only; no cluster can write there. Choose another --out.")
    server = connect(address)
    store = open_for_writing(url, config.store)
    place = store.url if "://" in store.url else os.path.abspath(store.url)
    status = _started(store, config)
    if status is not None and status.state == "finished":
        return Submission(place, server.address, "", "finished")
    epoch = current_epoch(store)
    driving = _driving(server, store, place, config.name, epoch) if epoch else None
    if driving is not None:
        _require_same(driving, config, place)
        return Submission(place, server.address, driving.submission_id, "attached")
    if status is not None and status.state == "running" and not _is_known(server, store, epoch):
        raise RunLockedError(
            f"{store.url} is being worked on by {status.owner}, which is no job of {server.address} that is known. Wait for it, "
            "or stop it."
        )
    return _place(server, store, place, config, epoch + 1, shipment)


def _text(config: RunConfig) -> str:
    """Return a configuration as JSON; not in canonical order, because some records list splits in that of the user."""
    return json.dumps(config.document(), allow_nan=False)


def _started(store: AbstractStore, config: RunConfig) -> RunStatus | None:
    """Return how far a run is, None if it is not there yet; refuse one of another configuration."""
    if store.get(layout.MANIFEST) is None:
        return None
    manifest = Manifest.read(store)
    changed = [path for path, _, _ in differences(manifest.semantic, config.semantic())]
    if changed:
        more = f" and {len(changed) - 5:,} more" if len(changed) > 5 else ""
        raise RunMismatchError(
            f"{store.url} holds a run of another configuration, which differs in {', '.join(changed[:5])}{more}. Choose another "
            "--out, or restore what changed."
        )
    return read_status(store, manifest)


def _require_same(job: "Job", config: RunConfig, place: str) -> None:
    """Refuse to take a job of another configuration for that of this one; of a run that has not begun nothing else tells.

    Raises:
        RunMismatchError: It is another one.
    """
    if job.metadata.get(DIGEST_KEY, config.digest()) != config.digest():
        raise RunMismatchError(
            f"the job {job.submission_id} is to carry out another configuration in {place}. Stop it first (`ntkpipe stop "
            f"{shlex.quote(place)}`), or choose another --out."
        )


def _driving(server: "JobServer", store: AbstractStore, place: str, name: str, epoch: int) -> "Job | None":
    """Return a job of the run that waits or runs; None if there is none.

    The last one that was recorded, or one of the latest epoch; of which the first may be without a record.
    """
    recorded = recorded_jobs(store)
    known = {record.submission_id for record in (*recorded[-1:], *(job for job in recorded if job.epoch == epoch))}
    for found in sorted({*known, submission_id(place, name, epoch, 1)}):
        job = server.find(found)
        if job is not None and job.is_alive:
            return job
    return None


def _is_known(server: "JobServer", store: AbstractStore, epoch: int) -> bool:
    """Return whether the cluster knows a job for an epoch: none that waits or runs, its lease need not be over."""
    return any(server.find(job.submission_id) is not None for job in recorded_jobs(store) if job.epoch == epoch)


def _place(
    server: "JobServer", store: AbstractStore, place: str, config: RunConfig, epoch: int, shipment: _Shipment
) -> Submission:
    """Find the job that is to have an epoch, or hand one over; one that has ended has had its turn.

    One that is recorded last, and that its cluster does not know, is handed over under the same id: somebody else may be
    about to, who ships code for minutes, and of two of one id a cluster takes one.
    """
    recorded = {record.submission_id: record.address for record in recorded_jobs(store)}
    attempt = 1
    while True:
        name = submission_id(place, config.name, epoch, attempt)
        job = server.find(name)
        is_last = submission_id(place, config.name, epoch, attempt + 1) not in recorded
        may_be_new = is_last and recorded.get(name, server.address) == server.address
        if may_be_new if job is None else job.is_alive:
            record = JobRecord(
                submission_id=name,
                address=server.address,
                submitted_at=time.time(),
                verb=shipment.verb,
                epoch=epoch,
                attempt=attempt,
            )
            # Before the job, which looks for it to see whether its node sees the same place.
            if record_job(store, record) or job is not None:
                break
            # Somebody has recorded it before, who submits the run here, or to another cluster.
            recorded = {record.submission_id: record.address for record in recorded_jobs(store)}
            if recorded.get(name) == server.address:
                break
        attempt += 1
    if job is not None:
        _require_same(job, config, place)
        return Submission(place, server.address, name, "attached")
    is_new = _hand_over(server, name, place, config, shipment)
    return Submission(place, server.address, name, "submitted" if is_new else "attached")


def _hand_over(server: "JobServer", name: str, place: str, config: RunConfig, shipment: _Shipment) -> bool:
    own = next((wheel.version for wheel in shipment.wheels if wheel.name == "ntkpipe"), ntkpipe.__version__)
    variables = {
        CONFIG_VARIABLE: _text(config),
        VERSION_VARIABLE: own,
        JOB_VARIABLE: name,
        "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(config.resources.grace_seconds) + STOP_MARGIN_SECONDS),
    }
    metadata = {RUN_KEY: place, DIGEST_KEY: config.digest()}
    with tempfile.TemporaryDirectory(prefix="ntkpipe-wheels-") as folder:
        modules = list(_copies(shipment.wheels, Path(folder)))
        environment: dict[str, Any] = {"env_vars": variables} | ({"py_modules": modules} if modules else {})
        return server.submit(name, entrypoint(place, shipment.python), environment, metadata)


def _copies(wheels: Sequence[Wheel], folder: Path) -> Iterator[str]:
    for wheel in wheels:
        yield str(prepared(wheel, folder))
