"""The command status: storage first, and then what the cluster says of the job; it never overrules what is stored."""

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from ntkpipe.pipeline.cli.progress import speed_lines
from ntkpipe.pipeline.cli.running import Url
from ntkpipe.pipeline.cli.terminal import cell, command, say
from ntkpipe.pipeline.jobs import News, news_of
from ntkpipe.pipeline.query.run import open_run
from ntkpipe.pipeline.status import RunStatus
from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store

WATCH_SECONDS = 2.0
"""Between two looks."""

Line = str | Table


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(status)


def status(
    url: Url,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again until nobody works on the run any more.")] = False,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of the job server, where it is not the one that was named before."),
    ] = None,
) -> None:
    """Say how far a run is, counted from its receipts, and what its cluster says of its job."""
    console, store = Console(), open_store(url)
    if watch and not as_json and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                found, news = _look(store, address)
                live.update(Group(*map(_drawn, _lines(store, found, news))), refresh=True)
                if not _is_open(found, news):
                    return
                time.sleep(WATCH_SECONDS)
    before: tuple[Any, ...] | None = None
    while True:
        found, news = _look(store, address)
        if (now := _progress(found, news)) != before:
            before = now
            if as_json:
                typer.echo(json.dumps(_document(store, found, news), indent=None if watch else 1))
            else:
                _print(console, _lines(store, found, news))
        if not watch or not _is_open(found, news):
            return
        time.sleep(WATCH_SECONDS)


def print_state(console: Console, store: AbstractStore) -> None:
    """Print what is stored of a run, without asking its cluster."""
    _print(console, _lines(store, _stored(store), None))


def job_text(news: News) -> str:
    """Return what is known of a job, in a line."""
    record = news.record
    if news.job is None:
        return f"job {record.submission_id} on {record.address}: {news.trouble}"
    code = f" (exit code {news.job.exit_code})" if news.job.exit_code else ""
    return f"job {record.submission_id} on {record.address}: {news.job.state}{code}"


def _look(store: AbstractStore, address: str | None) -> tuple[RunStatus | None, News | None]:
    """Return what is stored, None before a driver has begun, and what the cluster says.

    Raises:
        NotFoundError: There is neither.
    """
    news = news_of(store, address)
    found = _stored(store)
    if found is None and news is None:
        open_run(store.url)
    return found, news


def _stored(store: AbstractStore) -> RunStatus | None:
    return None if store.get(layout.MANIFEST) is None else open_run(store.url).status()


def _is_open(found: RunStatus | None, news: News | None) -> bool:
    """Return whether somebody works on a run, or is to."""
    return (found is not None and found.state == "running") or (
        (found is None or found.state != "finished") and news is not None and news.is_alive
    )


def _progress(found: RunStatus | None, news: News | None) -> tuple[Any, ...]:
    """Return what is worth another print; signs of life and rates always change."""
    stages = () if found is None else tuple((stage.done, stage.set_aside, stage.left_out) for stage in found.stages)
    return None if found is None else (found.state, found.epoch), stages, None if news is None else news.job


def _document(store: AbstractStore, found: RunStatus | None, news: News | None) -> dict[str, Any]:
    stored = {"url": store.url, "state": "submitted"} if found is None else dataclasses.asdict(found)
    if news is None:
        return stored | {"job": None}
    job = None if news.job is None else {"state": news.job.state, "exit_code": news.job.exit_code}
    record = news.record.model_dump(mode="json", include={"submission_id", "address", "submitted_at", "epoch"})
    return stored | {"job": record | (job or {"state": None, "exit_code": None}) | {"trouble": news.trouble}}


def _lines(store: AbstractStore, found: RunStatus | None, news: News | None) -> Iterator[Line]:
    has_ended = news is not None and news.job is not None and not news.job.is_alive
    if found is None and has_ended:
        yield f"submitted, but its job has ended before it began: submit it again ({store.url})"
    elif found is None:
        yield f"submitted, but no driver has begun it yet ({store.url})"
    else:
        yield from _stored_lines(found)
    if news is None:
        return
    yield job_text(news)
    if news.is_alive and found is not None and found.epoch < news.record.epoch:
        yield "its driver has not taken the run yet"
    if has_ended and found is None:
        yield f"see what it has printed: {command('logs', store.url)}"


def _stored_lines(found: RunStatus) -> Iterator[Line]:
    yield f"{found.name}: {found.state} ({found.url})"
    if found.owner is not None and found.silent_seconds is not None:
        yield f"worked on by {found.owner}, last sign of life {found.silent_seconds:.0f} s ago"
    yield from speed_lines(found)
    holes = any(stage.set_aside or stage.left_out for stage in found.stages)
    table = Table("stage", "done", "of", *(("set aside", "left out") if holes else ()))
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in found.stages:
        missing = (f"{stage.set_aside:,}", f"{stage.left_out:,}") if holes else ()
        table.add_row(stage.stage, f"{stage.done:,}", f"{stage.total:,}", *missing)
    yield table
    for name, text in found.solves.items():
        yield f"solution {name}: {text}"
    for failure in found.failures:
        yield f"failed: {failure}"
    if found.state == "interrupted":
        yield f"Go on with: {command('resume', found.url)}"
    if found.state == "incomplete":
        yield f"Try again what was set aside, and what needs it: {command('resume', found.url)}"


def _print(console: Console, lines: Iterator[Line]) -> None:
    for line in lines:
        if isinstance(line, str):
            say(console, line)
        else:
            console.print(line)


def _drawn(line: Line) -> RenderableType:
    return cell(line) if isinstance(line, str) else line
