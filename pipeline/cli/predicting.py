"""The command that applies stored solutions to new samples: predict."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ntkpipe.configs.errors import ConfigError, RunStoppedError
from ntkpipe.configs.units import duration, size
from ntkpipe.configs.yaml_text import parse_yaml
from ntkpipe.pipeline.cli.output import write_answer
from ntkpipe.pipeline.cli.progress import ProgressDisplay
from ntkpipe.pipeline.cli.running import Overrides, SingleWriter, Url, settings_of
from ntkpipe.pipeline.cli.terminal import cell, say
from ntkpipe.pipeline.query.formats import Answer, Format, format_of
from ntkpipe.pipeline.stopping import StopRequest

if TYPE_CHECKING:
    from ntkpipe.pipeline.new_samples import StageWork
    from ntkpipe.pipeline.plan import Plan
    from ntkpipe.pipeline.predictions import Predictions

CLASS = "class"
"""Name of the column of predicted classes."""

Solutions = Annotated[
    list[str] | None,
    typer.Option("--solution", metavar="NAME", help="Of the run; may be given more than once; all by default."),
]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="For the callable that --data names.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(predict)


def predict(
    url: Url,
    data: Annotated[
        str, typer.Option(metavar="FILE", help="A .npz or .npy file of new samples, or package.module:callable.")
    ],
    options: Options = None,
    solutions: Solutions = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A .csv, .json, .parquet, .arrow or .npy file; CSV on the screen by default."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Keep what is computed: go on with it after an interruption, and query the kernel rows."
        ),
    ] = None,
    overrides: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done; compute nothing.")] = False,
    single_writer: SingleWriter = False,
) -> None:
    """Apply stored solutions to new samples; compares with their labels if they have any."""
    from ntkpipe.pipeline import predictions as verbs

    form = _form_of(out)
    asked: dict[str, Any] = {
        "solutions": solutions,
        "options": _options(options or []),
        "overrides": settings_of(overrides, single_writer),
    }
    # The answer may be on the screen; what is said about it goes where errors go.
    console, started, stop = Console(stderr=True), time.monotonic(), StopRequest()
    if plan:
        _print_plan(Console(), *verbs.prediction_work(url, data, **asked))
        return
    try:
        with stop.listening(), ProgressDisplay(console) as progress:
            found = verbs.predict(url, data, keep=keep, progress=progress, stop=stop, **asked)
    except RunStoppedError:
        left = "nothing is kept of it without --keep" if keep is None else "the same command goes on with it"
        raise RunStoppedError(f"the prediction was told to stop; {left}.") from None
    write_answer(answer_of(found, with_classes=form != "npy"), out)
    _print_summary(console, found, time.monotonic() - started, keep)


def answer_of(found: "Predictions", *, with_classes: bool) -> Answer:
    """Return predictions as a table with a column for each target, named by its solution where there are several.

    Args:
        found: The predictions.
        with_classes: Begin the columns of each solution of classes with the predicted ones.
    """
    names: list[str] = []
    columns: list[list[Any]] = []
    for solution, values_MT in found.values.items():
        before = f"{solution}/" if len(found.values) > 1 else ""
        if with_classes and found.records[solution].classes:
            names.append(f"{before}{CLASS}")
            columns.append(found.classes(solution).tolist())
        names += [f"{before}{target}" for target in range(values_MT.shape[1])]
        columns += values_MT.T.tolist()
    return Answer([list(row) for row in zip(*columns, strict=True)], list(found.ids), names)


def _form_of(out: Path | None) -> Format | None:
    """Return the format of the answer, None for the screen; what could only fail at the end is refused now.

    Raises:
        ConfigError: The ending is unknown, or there is no such folder.
    """
    if out is None:
        return None
    form = format_of(out.suffix)
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out} cannot be written: there is no folder {out.absolute().parent}.")
    return form


def _options(texts: list[str]) -> dict[str, Any]:
    """Return the options of a callable.

    Raises:
        ConfigError: A text is not of the form KEY=VALUE.
    """
    found = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise ConfigError(f"--option {text!r} is not of the form KEY=VALUE, such as split=test.")
        found[key] = parse_yaml(value, f"--option {text!r}: the value")
    return found


def _print_plan(console: Console, made: "Plan", work: list["StageWork"]) -> None:
    from ntkpipe.pipeline.predictions import cost_line

    table = Table("stage", "to compute", "in the run", "FLOPs", "read", "written")
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in work:
        table.add_row(
            stage.stage,
            f"{stage.num_tasks:,}",
            f"{stage.num_taken:,}",
            f"{float(stage.cost.flops):.2e}",
            size(stage.cost.bytes_read),
            size(stage.cost.bytes_written),
        )
    console.print(table)
    say(console, cost_line(work, made))
    for kernel in made.geometry.kernels:
        say(console, f"kernel {kernel.name}: {kernel.kind}")


def _print_summary(console: Console, found: "Predictions", seconds: float, keep: str | None) -> None:
    say(console, f"{len(found.ids):,} samples in {duration(seconds)}{'' if keep is None else f', kept at {keep}'}")
    if not found.losses:
        return
    table = Table("solution", "kernel", "method", "error on the new samples")
    for name, loss in found.losses.items():
        record = found.records[name]
        text = f"{100 * loss:.2f} %" if record.classes else f"{loss:.3g}"
        table.add_row(cell(name), cell(record.kernel), cell(record.method), text)
    console.print(table)
