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

from ntkpipe.configs.errors import ConfigError, NotFoundError, NtkPipeError
from ntkpipe.pipeline.cli.opening import TokenFile, check_no_token, is_service, opened, read_token
from ntkpipe.pipeline.cli.output import write_answer
from ntkpipe.pipeline.cli.selection import read_selection
from ntkpipe.pipeline.cli.terminal import cell
from ntkpipe.pipeline.jobs import RUN_KEY, connect
from ntkpipe.pipeline.query.formats import format_of
from ntkpipe.pipeline.query.names import Missing
from ntkpipe.pipeline.query.questions import QUESTIONS, Details, ask
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
        typer.Argument(
            help=escape("Folder or URL that holds runs, or http(s)://HOST [runs; with --address, all of the cluster].")
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of a Ray job server, such as http://HEAD:8265: show its jobs, too."),
    ] = None,
    token_file: TokenFile = None,
) -> None:
    """List the runs right below a folder or URL, of a service, or those that were submitted to a cluster."""
    if root is not None and is_service(root):
        _list_service(root, address, token_file)
        return
    check_no_token(root or "runs", token_file)
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
    table = _table(*(() if address is None else ("job",)))
    for url in urls:
        job = () if address is None else (cell(jobs.get(_place(url), "")),)
        table.add_row(cell(url), *_row(url), *job)
    Console().print(table)


def _table(*more: str) -> Table:
    table = Table("run", "name", "state", "done", "of", *more)
    for column in table.columns:
        # What is cut off cannot be told from others, nor given to another command.
        column.overflow = "fold"
    return table


def _list_service(url: str, address: str | None, token_file: Path | None) -> None:
    if address is not None:
        raise ConfigError("--address is of a cluster, and a service knows none of its jobs; leave one of the two out.")
    from ntkpipe.pipeline.client.connecting import runs_of

    found = runs_of(url, read_token(token_file))
    if not found:
        raise ConfigError(f"the service at {url} has no runs.")
    table = _table()
    for item in found:
        stages = item.get("stages") or []
        done, total = (f"{sum(int(stage[key]) for stage in stages):,}" for key in ("done", "total"))
        problem = item.get("problem")
        state = f"unreadable: {problem}" if problem else str(item.get("state", ""))
        counts = ("", "") if problem else (done, total)
        table.add_row(cell(str(item.get("run", ""))), cell(str(item.get("name", ""))), cell(state), *counts)
    Console().print(table)


def _row(url: str) -> tuple[Text, str | Text, str, str]:
    """Return name, state and progress of a run."""
    try:
        found = open_run(url).status()
    except NotFoundError:
        return cell(""), "not begun", "", ""
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
    url: Annotated[str, typer.Argument(metavar="RUN", help="Path or URL of the run, or http(s)://HOST/v1/runs/NAME.")],
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help=escape(f"One of {', '.join(QUESTIONS)}."),
        ),
    ],
    rows: Annotated[
        str,
        typer.Option(
            help="0:10, 3, 1,5,7, id:NAME, id:NAME,id:OTHER, or @FILE.npy (positions or a mask); default all."
        ),
    ] = ":",
    cols: Annotated[str, typer.Option(help="As --rows, for kernels and attributions.")] = ":",
    out: Annotated[
        Path | None,
        typer.Option(help="A .npy, .csv, .json, .arrow or .parquet file; CSV on the screen by default."),
    ] = None,
    missing: Annotated[
        Missing, typer.Option(help="What becomes of entries of kernels that are not committed yet.")
    ] = "raise",
    transforms: Annotated[
        str, typer.Option(metavar="NAMES", help="Of kernels, neighbors, spectra: cosine, centred or cosine,centred.")
    ] = "",
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Sum these components of a layerwise kernel; may be given more than once."
        ),
    ] = None,
    k: Annotated[int, typer.Option(help="How many neighbors.")] = 5,
    opposed: Annotated[bool, typer.Option("--opposed", help="The most opposed neighbors.")] = False,
    label: Annotated[int | None, typer.Option(help="Neighbors of this class only.")] = None,
    target: Annotated[int | None, typer.Option(help="Of an attribution: a column of the prediction.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Of a spectrum: at most so many, evenly spaced.")] = None,
    token_file: TokenFile = None,
) -> None:
    """Read stored values by position, range, mask or sample id, from a store or a service."""
    if out is not None:
        format_of(out.suffix)  # before anything is read
    details = Details(
        rows=read_selection(rows),
        columns=read_selection(cols),
        k=k,
        opposed=opposed,
        label=label,
        target=target,
        missing=missing,
        layers=tuple(layers or ()),
        transforms=tuple(transforms.split(",")) if transforms else (),
        max_samples=max_samples,
    )
    write_answer(ask(opened(url, token_file), what, details), out)


def schema() -> None:
    """Print the JSON schema of configurations."""
    from ntkpipe.configs.run import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=1))
