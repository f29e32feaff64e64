"""The command that makes a report of a run: report."""

import re
from pathlib import Path
from typing import Annotated

import typer

from ntkpipe.configs.errors import StorageError
from ntkpipe.pipeline.cli.running import Url
from ntkpipe.pipeline.cli.terminal import printable
from ntkpipe.storage.stores.registry import open_store

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(report)


def report(
    url: Url,
    out: Annotated[Path | None, typer.Option(help="The file; by default NAME-report.html in this folder.")] = None,
) -> None:
    """Make one HTML file that shows a run: timeline, throughput, memory, reads, faults. It needs no network."""
    from ntkpipe.pipeline.report.page import make_report

    store = open_store(url)
    page = make_report(store)
    name = _UNUSUAL.sub("-", store.url.rstrip("/").rpartition("/")[2]).strip(".-") or "run"
    path = out if out is not None else Path(f"{name}-report.html")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}.") from None
    typer.echo(printable(f"wrote {path}"))
