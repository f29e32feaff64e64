"""Commands for runs that a Ray cluster drives: submit, logs, stop."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ntkpipe.configs.errors import NotFoundError, NtkPipeError, PlanError
from ntkpipe.pipeline import jobs, submission
from ntkpipe.pipeline.cli.running import Config, Out, Overrides, Python, SingleWriter, Url, Wait, Wheels, settings_of
from ntkpipe.pipeline.cli.state import print_state
from ntkpipe.pipeline.cli.terminal import command, printable, say, warn
from ntkpipe.pipeline.events import read_events
from ntkpipe.pipeline.query.run import open_run
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store

if TYPE_CHECKING:
    from ntkpipe.pipeline.jobserver import Job, JobServer

DETACHED = 130
"""Exit code of a command that has watched a job until Ctrl-C."""

Address = Annotated[
    str | None, typer.Option(metavar="URL", help="Of the job server, where it is not the one that was named before.")
]


class Detached(SystemExit):
    """Ends a command that only watches, and has said so."""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for verb in (submit, logs, stop):
        app.command()(verb)


def submit(
    config: Config,
    address: Annotated[str, typer.Option(metavar="URL", help="Of a Ray job server, such as http://HEAD:8265.")],
    out: Out = None,
    overrides: Overrides = None,
    wheels: Wheels = None,
    python: Python = "",
    wait: Wait = False,
    single_writer: SingleWriter = False,
) -> None:
    """Have a Ray cluster carry out a configuration, or finish what it has begun; submitting twice does no harm."""
    settings = settings_of(overrides, single_writer)
    found = submission.submit(config, out, address=address, overrides=settings, wheels=wheels or (), python=python)
    _report(found, wait=wait)


def resume_on_cluster(
    url: str, address: str, settings: list[str], wheels: list[Path], python: str, *, wait: bool
) -> None:
    """Have a Ray cluster finish a run."""
    _report(submission.resume_on(url, address=address, overrides=settings, wheels=wheels, python=python), wait=wait)


def logs(
    url: Url,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
    tail: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the last N lines.")] = None,
    address: Address = None,
) -> None:
    """Show what the last job of a run has printed; without its cluster, what its drivers have recorded in the run."""
    store = open_store(url)
    record = jobs.last_job(store)
    try:
        if record is None:
            raise NotFoundError("the run was never submitted to a cluster.")
        server = jobs.server_of(record, address)
        printed = server.logs(record.submission_id)
    except NtkPipeError as error:
        open_run(url)
        warn(f"{error.message}\nThese are the events that its drivers have recorded:")
        _show("".join(f"{line}\n" for line in _event_lines(store)), tail)
        return
    if not follow:
        _show(printed, tail)
        return
    if tail is not None:
        _show(printed, tail)
    _watch(server, record.submission_id, url, len(printed) if tail is not None else 0)


def stop(url: Url, address: Address = None) -> None:
    """Ask the job that drives a run to end, and wait until it has; what is committed stays."""
    console = Console()
    server, job = jobs.stop(url, address=address)
    if job.is_alive:
        say(console, f"{job.submission_id} on {server.address} is asked to stop.")
        job = server.follow(job.submission_id, lambda _: None)
        say(console, f"{job.submission_id}: {job.state}")
    else:
        say(console, f"{job.submission_id} on {server.address} has ended before: {job.state}")
    print_state(console, open_store(url))


def _report(found: submission.Submission, *, wait: bool) -> None:
    """Say what became of a submission, and watch its job if that is wanted."""
    console = Console()
    if found.outcome == "finished":
        say(console, f"{found.url} is finished; nothing was submitted.")
        say(console, f"Look at it: {command('status', found.url)}")
        return
    if found.outcome == "attached":
        say(console, f"there is a job for {found.url} already; nothing was submitted: {found.submission_id}")
    else:
        say(console, f"submitted to {found.address}: {found.submission_id}")
        say(console, f"run: {found.url}")
        if "://" not in found.url:
            say(console, "Every node of the cluster must see this folder under the same path.")
    for verb in ("status", "logs", "stop"):
        say(console, f"  {command(verb, found.url)}")
    if wait:
        _watch(jobs.connect(found.address), found.submission_id, found.url, 0)


def _watch(server: "JobServer", submission_id: str, url: str, skip: int) -> None:
    """Show what a job prints until it has ended, and end as its run did."""
    console = Console()

    def show(text: str) -> None:
        typer.echo(printable(text), nl=False)

    try:
        job = server.follow(submission_id, show, skip=skip)
    except KeyboardInterrupt:
        say(console, f"\nThe job goes on without this terminal. Look at it: {command('logs', url, '--follow')}")
        raise Detached(DETACHED) from None
    except PlanError as error:
        raise PlanError(
            f"{error.message} The job may go on without this terminal; what is committed is shown by `{command('status', url)}`."
        ) from None
    code = _exit_code(job, url)
    if job.exit_code is None and job.message:
        warn(job.message)
    say(console, f"{submission_id}: {job.state}")
    if code:
        raise typer.Exit(code)


def _exit_code(job: "Job", url: str) -> int:
    """Return the run's exit code: that of its driver; where nobody knows it, what is stored decides."""
    if job.exit_code is not None:
        # A driver that was ended by a signal has the code that a shell gives it.
        return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
    with suppress(NtkPipeError):
        if open_run(url).status().state == "finished":
            return 0
    return 1


def _event_lines(store: AbstractStore) -> Iterator[str]:
    for event in read_events(store):
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.time))
        rest = {name: value for name, value in event.fields.items() if name not in ("time", "epoch", "event")}
        yield f"{at} epoch {event.epoch} {event.name} {json.dumps(rest)}"


def _show(text: str, tail: int | None) -> None:
    lines = text.splitlines(keepends=True)
    typer.echo(printable("".join(lines if tail is None else lines[-tail:])), nl=False)
