"""Commands that look at runs and configurations: list, query, schema."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ntkpipe.configs.errors import ConfigError, NtkPipeError
from ntkpipe.pipeline.cli.output import write_answer
from ntkpipe.pipeline.cli.questions import QUESTIONS, ask
from ntkpipe.pipeline.cli.running import Url
from ntkpipe.pipeline.cli.terminal import cell
from ntkpipe.pipeline.jobs import RUN_KEY, connect
from ntkpipe.pipeline.query.run import open_run
from ntkpipe.storage import layout
from ntkpipe.storage.stores.registry import open_store


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(name="list")(list_runs)
    app.command()(query)
    app.command()(schema)


def list_runs(
    root: Annotated[
        str | None,
        typer.Argument(help=escape("Folder or URL that holds runs [runs; with --address, all of the cluster].")),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of a Ray job server, such as http://HEAD:8265: show its jobs, too."),
    ] = None,
) -> None:
    """List the runs right below a folder or URL, or those that were submitted to a cluster."""
    jobs = {} if address is None else _jobs_of_runs(address)
    if root is None and address is not None:
        urls = list(jobs)
    else:
        root = root or "runs"
        store = open_store(root)
        names = [name for name in store.folders() if store.get(f"{name}/{layout.MANIFEST}") is not None]
        urls = [f"{root.rstrip('/')}/{name}" for name in names]
    if not urls and address is not None and root is None:
        raise ConfigError(f"no run was submitted to {address}. Submit one with `ntkpipe submit`.")
    if not urls:
        raise ConfigError(f"there are no runs below {root}. Start one with `ntkpipe run digits`.")
    table = Table("run", "name", "state", "done", "of", *(() if address is None else ("job",)))
    for column in table.columns:
        # What is cut off cannot be told from others, nor given to another command.
        column.overflow = "fold"
    for url in urls:
        job = () if address is None else (cell(jobs.get(_place(url), "")),)
        table.add_row(cell(url), *_row(url), *job)
    Console().print(table)


def _row(url: str) -> tuple[Text, str | Text, str, str]:
    """Return name, state and progress of a run."""
    try:
        found = open_run(url).status()
    except NtkPipeError as error:
        return cell(""), cell(f"unreadable: {error.message}"), "", ""
    done, total = (sum(getattr(stage, key) for stage in found.stages) for key in ("done", "total"))
    return cell(found.name), found.state, f"{done:,}", f"{total:,}"


def _jobs_of_runs(address: str) -> dict[str, str]:
    """Return the last job of every run that a cluster knows, by the run's URL: its id and state."""
    jobs = [job for job in connect(address).jobs() if RUN_KEY in job.metadata]
    return {
        job.metadata[RUN_KEY]: f"{job.submission_id}: {job.state}"
        for job in sorted(jobs, key=lambda job: job.started_at)
    }


def _place(url: str) -> str:
    return url if "://" in url else os.path.abspath(url)


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
