"""Commands that look at runs and configurations: status, list, query, schema."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ntkpipe.configs.errors import ConfigError, NtkPipeError
from ntkpipe.pipeline.cli.output import Answer, write_answer
from ntkpipe.pipeline.cli.running import Url
from ntkpipe.pipeline.cli.selection import parse_selection
from ntkpipe.pipeline.query import Run, open_run
from ntkpipe.storage import layout
from ntkpipe.storage.stores import open_store

MAX_CELLS = 200_000_000
"""A query that would return more is refused: 1.6 GB in float64."""


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
    _say(console, f"{found.name}: {found.state} ({found.url})")
    if found.owner is not None and found.silent_seconds is not None:
        _say(console, f"worked on by {found.owner}, last sign of life {found.silent_seconds:.0f} s ago")
    table = Table("stage", "done", "of")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in found.stages:
        table.add_row(stage.stage, f"{stage.done:,}", f"{stage.total:,}")
    console.print(table)
    for failure in found.failures:
        _say(console, f"failed: {failure}")
    if found.state == "interrupted":
        _say(console, f"Go on with: ntkpipe resume {found.url}")


def list_runs(root: Annotated[str, typer.Argument(help="Folder or URL that holds runs.")] = "runs") -> None:
    """List the runs below a folder or URL."""
    table = Table("run", "name", "state", "done", "of")
    suffix = f"/{layout.MANIFEST}"
    names = [key.removesuffix(suffix) for key in open_store(root).names("") if key.endswith(suffix)]
    for name in names:
        url = f"{root.rstrip('/')}/{name.removeprefix('./')}"
        try:
            found = open_run(url).status()
        except NtkPipeError as error:
            table.add_row(url, "", f"unreadable: {error.message}", "", "")
            continue
        done, total = (sum(getattr(stage, key) for stage in found.stages) for key in ("done", "total"))
        table.add_row(url, found.name, found.state, f"{done:,}", f"{total:,}")
    if not names:
        raise ConfigError(f"there are no runs below {root}. Start one with `ntkpipe run digits`.")
    Console().print(table)


def query(
    url: Url,
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="kernel/NAME[/ROWS-COLUMNS], component/NAME/PARAMETER[/ROWS-COLUMNS], features/NAME[/SPLIT], "
            "diagonal/NAME[/SPLIT], neighbors/NAME[/SPLIT], solution/NAME, prediction/NAME/SPLIT, outputs/SPLIT, "
            "labels/SPLIT or ids/SPLIT.",
        ),
    ],
    rows: Annotated[str, typer.Option(help="0:10, 3, 1,5,7, id:NAME or id:NAME,id:OTHER; all by default.")] = ":",
    cols: Annotated[str, typer.Option(help="As --rows, for kernels.")] = ":",
    k: Annotated[int, typer.Option(help="How many neighbors.")] = 5,
    out: Annotated[Path | None, typer.Option(help="A .npy, .csv or .json file; CSV on the screen by default.")] = None,
) -> None:
    """Read stored values by position, range or sample id."""
    write_answer(_answer(open_run(url), what, rows, cols, k), out)


def schema() -> None:
    """Print the JSON schema of configurations."""
    from ntkpipe.configs.run import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=1))


def _answer(run: Run, what: str, rows: str, cols: str, k: int) -> Answer:
    """Read what was asked for, with the ids of its rows and columns."""
    kind, *parts = what.split("/")
    name, extra = (parts[0] if parts else ""), "/".join(parts[1:])
    if kind in ("kernel", "component"):
        parameter, _, pair = extra.partition("/") if kind == "component" else (None, "", extra)
        row_split, _, column_split = (pair or f"{run.train_split}-{run.train_split}").partition("-")
        matrix = run.kernel(name, row_split, column_split or None, component=parameter)
        at = run.positions(parse_selection(rows), row_split)
        columns = run.positions(parse_selection(cols), column_split or run.train_split)
        _check_cells(len(at) * len(columns))
        row_ids, column_ids = run.ids(row_split), run.ids(column_split or run.train_split)
        return Answer(matrix[at, columns], [row_ids[i] for i in at], [column_ids[i] for i in columns])
    if kind == "neighbors":
        return _neighbors(run, name, extra or run.train_split, rows, k)
    split = {"features": extra, "diagonal": extra, "prediction": extra, "solution": ""}.get(
        kind, name
    ) or run.train_split
    at = run.positions(parse_selection(rows), split)
    ids = [run.ids(split)[i] for i in at]
    match kind:
        case "features":
            _check_cells(len(at) * (run.manifest.geometry.kernel(name).feature_dim or 0) if name else 0)
            return Answer(run.features[name, split][at], ids)
        case "diagonal":
            return Answer(run.diagonal(name, split)[at], ids)
        case "solution":
            return Answer(run.solution(name)[at], ids)
        case "prediction":
            return Answer(run.predictions(name, split)[at], ids)
        case "outputs":
            return Answer(run.outputs(split)[at], ids)
        case "labels":
            labels = run.labels(split)
            if labels is None:
                raise ConfigError(f"split {split!r} has no labels.")
            return Answer(labels[at], ids)
        case "ids":
            return Answer(at, ids)
    raise ConfigError(
        f"{what!r} is nothing that can be asked for. Ask for kernel/NAME, component/NAME/PARAMETER, features/NAME, "
        "diagonal/NAME, neighbors/NAME, solution/NAME, prediction/NAME/SPLIT, outputs/SPLIT, labels/SPLIT or ids/SPLIT."
    )


def _neighbors(run: Run, name: str, split: str, rows: str, k: int) -> Answer:
    at = run.positions(parse_selection(rows), split)
    found = [run.neighbors(int(position), k, kernel=name, split=split) for position in at]
    ids = [run.ids(split)[position] for position, row in zip(at, found, strict=True) for _ in row]
    flat = [neighbor for row in found for neighbor in row]
    return Answer([[neighbor.sample_id, neighbor.value] for neighbor in flat], ids, ["neighbor", "kernel"])


def _check_cells(num_cells: int) -> None:
    if num_cells > MAX_CELLS:
        raise ConfigError(f"that would be {num_cells:,} values; ask for at most {MAX_CELLS:,} with --rows and --cols.")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
