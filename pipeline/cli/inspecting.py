"""Commands that look at runs and configurations: status, list, query, schema."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ntkpipe.configs.errors import ConfigError, NtkPipeError
from ntkpipe.pipeline.cli.output import write_answer
from ntkpipe.pipeline.cli.questions import QUESTIONS, ask
from ntkpipe.pipeline.cli.running import Url
from ntkpipe.pipeline.cli.terminal import cell, command, say
from ntkpipe.pipeline.query import open_run
from ntkpipe.storage import layout
from ntkpipe.storage.stores.registry import open_store


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(status)
    app.command(name="list")(list_runs)
    app.command()(query)
    app.command()(schema)


def status(url: Url, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say how far a run is, counted from its receipts."""
    found = open_run(url).status()
    console = Console()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=1))
        return
    say(console, f"{found.name}: {found.state} ({found.url})")
    if found.owner is not None and found.silent_seconds is not None:
        say(console, f"worked on by {found.owner}, last sign of life {found.silent_seconds:.0f} s ago")
    holes = any(stage.set_aside or stage.left_out for stage in found.stages)
    table = Table("stage", "done", "of", *(("set aside", "left out") if holes else ()))
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in found.stages:
        missing = (f"{stage.set_aside:,}", f"{stage.left_out:,}") if holes else ()
        table.add_row(stage.stage, f"{stage.done:,}", f"{stage.total:,}", *missing)
    console.print(table)
    for name, text in found.solves.items():
        say(console, f"solution {name}: {text}")
    for failure in found.failures:
        say(console, f"failed: {failure}")
    if found.state == "interrupted":
        say(console, f"Go on with: {command('resume', found.url)}")
    if found.state == "incomplete":
        say(console, f"Try again what was set aside, and what needs it: {command('resume', found.url)}")


def list_runs(root: Annotated[str, typer.Argument(help="Folder or URL that holds runs.")] = "runs") -> None:
    """List the runs right below a folder or URL."""
    table = Table("run", "name", "state", "done", "of")
    store = open_store(root)
    names = [name for name in store.folders() if store.get(f"{name}/{layout.MANIFEST}") is not None]
    for name in names:
        url = f"{root.rstrip('/')}/{name}"
        try:
            found = open_run(url).status()
        except NtkPipeError as error:
            table.add_row(cell(url), "", cell(f"unreadable: {error.message}"), "", "")
            continue
        done, total = (sum(getattr(stage, key) for stage in found.stages) for key in ("done", "total"))
        table.add_row(cell(url), cell(found.name), found.state, f"{done:,}", f"{total:,}")
    if not names:
        raise ConfigError(f"there are no runs below {root}. Start one with `ntkpipe run digits`.")
    Console().print(table)


def query(
    url: Url,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help=escape(f"One of {', '.join(QUESTIONS)}."),
        ),
    ],
    rows: Annotated[str, typer.Option(help="0:10, 3, 1,5,7, id:NAME or id:NAME,id:OTHER; all by default.")] = ":",
    cols: Annotated[str, typer.Option(help="As --rows, for kernels.")] = ":",
    k: Annotated[int, typer.Option(help="How many neighbors.")] = 5,
    out: Annotated[Path | None, typer.Option(help="A .npy, .csv or .json file; CSV on the screen by default.")] = None,
) -> None:
    """Read stored values by position, range or sample id."""
    write_answer(ask(open_run(url), what, rows, cols, k), out)


def schema() -> None:
    """Print the JSON schema of configurations."""
    from ntkpipe.configs.run import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=1))
