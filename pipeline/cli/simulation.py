"""The command that simulates a run on more nodes than there are: simulate."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.units import duration, size
from ntkpipe.pipeline.cli.planning import CalibrationFile, CatalogueFiles, Samples, parse_samples
from ntkpipe.pipeline.cli.running import Config, Overrides
from ntkpipe.pipeline.cli.terminal import cell, printable, say, warn

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="What the job would run on, as for plan: 8xh100, 2x8xh100, 4xcpu,2xa100-80@s3, a name, or a YAML file.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(simulate)


def simulate(
    config: Config,
    overrides: Overrides = None,
    cluster: Cluster = None,
    nodes: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help=escape("Numbers of nodes, such as 1,10,100,1000 [those of the cluster].")),
    ] = None,
    samples: Samples = None,
    calibration: CalibrationFile = None,
    catalogue: CatalogueFiles = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all random numbers.")] = 0,
    failures: Annotated[
        bool, typer.Option("--failures/--no-failures", help="Whether nodes are lost, as often as the cluster says.")
    ] = True,
    spread: Annotated[
        float,
        typer.Option(min=0, max=2, help="How uneven equal tasks are: standard deviation of the log of their time."),
    ] = 0.1,
    slow_nodes: Annotated[float, typer.Option(min=0, max=1, help="Share of nodes that take twice as long.")] = 0.0,
    notice: Annotated[float, typer.Option(min=0, help="Seconds between a notice and the loss of a node.")] = 0.0,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where curves.png, curves.json and table.csv are written.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Simulate a job on a described cluster of one or more sizes: the real driver, with workers that compute nothing."""
    # A mistake is told at once, without PyTorch, which takes a second to import.
    checked = load_config(config, overrides or ())
    from ntkpipe.pipeline.prediction.described import described_cluster
    from ntkpipe.pipeline.prediction.fitting import misfits
    from ntkpipe.pipeline.prediction.workload import Workload
    from ntkpipe.pipeline.run import plan as plan_run
    from ntkpipe.pipeline.simulation.chance import Chance
    from ntkpipe.pipeline.simulation.sweep import as_csv, document, rows, sweep

    measured, described = described_cluster(cluster, calibration, catalogue or ())
    if described is None:
        raise ConfigError("a simulation needs a cluster: give --cluster SPEC, such as 8xh100, or --calibration FILE.")
    sizes = _numbers(nodes)
    _, probe = plan_run(checked)
    workload = Workload.of(probe)
    if samples:
        workload = workload.scaled(parse_samples(samples))
    chance = Chance(task_spread=spread, slow_nodes=slow_nodes, failures=failures, notice_seconds=notice)
    target = described(workload.config.resources)
    for problem in misfits(workload, target):
        warn(f"simulated, although `ntkpipe plan` refuses it on {target.name}: {problem.text}")
    found = []
    for one in sweep(workload, target, sizes, measured, chance, seed):
        found.append(one)
        # Very many tasks take minutes.
        warn(f"simulated: {one.cluster.num_nodes:,} nodes, {duration(one.seconds)}")
    content = document(workload, found, seed)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
    else:
        _print_table(rows(found), f"{workload.config.name} on {target.name}, simulated")
    if out is not None:
        _write(out, content, as_csv(found), f"{workload.config.name} on {target.name}")


def _numbers(text: str | None) -> list[int]:
    """Return numbers of nodes.

    Raises:
        ConfigError: They are no numbers above 0.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--nodes {text!r} is not of the form N,N,..., such as 1,10,100.")
    return [int(part) for part in parts]


def _print_table(sizes: Sequence[Mapping[str, Any]], title: str) -> None:
    console = Console()
    facts: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "workers": lambda row: f"{row['workers']:,}",
        "time": lambda row: duration(row["seconds"]),
        "speed-up": lambda row: f"{row['speed_up']:,.3g}",
        "efficiency": lambda row: f"{row['efficiency']:.0%}",
        "workers busy": lambda row: f"{row['utilisation']:.0%}",
        "driver busy": lambda row: f"{row['driver_share']:.1%}",
        "slowest 1 % of tasks": lambda row: duration(row["slowest_task_seconds"]),
        "median of tasks": lambda row: duration(row["median_task_seconds"]),
        "nodes lost": lambda row: f"{row['nodes_lost']:,}",
        "retries": lambda row: f"{row['retries']:,}",
        "tasks done twice": lambda row: f"{row['redone']:,}",
        "read": lambda row: size(row["bytes_read"]),
        "written": lambda row: size(row["bytes_written"]),
        "sides of blocks read": lambda row: f"{row['sides_read']:,}",
        "as planned": lambda row: f"{row['sides_planned']:,}",
        "price": lambda row: f"{row['price']:,.2f}" if row["price"] else "-",
        "bound by": lambda row: row["bottleneck"],
    }
    # Numbers of nodes are few and facts are many: a line for each fact fits a terminal.
    table = Table("nodes", *(f"{row['nodes']:,}" for row in sizes), title=cell(title))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, text in facts.items():
        table.add_row(name, *(cell(text(row)) for row in sizes))
    console.print(table)
    for row in sizes:
        if row["failure"]:
            say(console, f"{row['nodes']:,} nodes: the run ends with an error: {row['failure']}")


def _write(folder: Path, content: Mapping[str, Any], table: str, title: str) -> None:
    """Write the picture and the numbers.

    Raises:
        StorageError: The folder cannot be written.
        ConfigError: matplotlib is not installed.
    """
    from ntkpipe.pipeline.simulation.account import PARTS
    from ntkpipe.workers.analyses.curves import Point, draw_curves

    points = [
        Point(
            nodes=row["nodes"],
            seconds=row["seconds"],
            efficiency=row["efficiency"],
            price=row["price"],
            node_seconds=row["nodes"] * row["seconds"],
            shares={PARTS[name]: share for name, share in row["worker_time"].items()},
        )
        for row in content["sizes"]
    ]
    picture = draw_curves(points, printable(title))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curves.png").write_bytes(picture)
        (folder / "curves.json").write_text(json.dumps(content, indent=1))
        (folder / "table.csv").write_text(table)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}.") from None
    typer.echo(printable(f"wrote {folder}/curves.png, curves.json and table.csv"), err=True)
