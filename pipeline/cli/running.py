"""Commands that start a run or go on with one: run, resume, extend."""

import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ntkpipe.pipeline.cli.progress import ProgressDisplay
from ntkpipe.pipeline.cli.summary import print_summary
from ntkpipe.pipeline.query import Run
from ntkpipe.pipeline.stopping import StopRequest

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. resources.workers=4.")
]
Url = Annotated[str, typer.Argument(metavar="RUN", help="Path or URL of the run.")]
Out = Annotated[str | None, typer.Option(help=escape("Path or URL of the new run [runs/NAME-TIME]."))]
SingleWriter = Annotated[
    bool,
    typer.Option(
        "--single-writer",
        help="Allow a store that does not refuse to create an object twice; you see to it that only one driver runs.",
    ),
]
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a preset such as digits.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (run, resume, extend):
        app.command()(command)


def run(
    config: Config,
    out: Out = None,
    overrides: Overrides = None,
    fork: Annotated[
        str | None, typer.Option(metavar="RUN", help="A run from which everything that is still valid is taken over.")
    ] = None,
    single_writer: SingleWriter = False,
) -> None:
    """Carry out a configuration: features, kernels, solutions, analyses."""
    from ntkpipe.pipeline import run as verbs

    settings = _settings(overrides, single_writer)
    if fork is None:
        _carry_out(lambda **watched: verbs.run(config, out, overrides=settings, **watched))
    else:
        _carry_out(lambda **watched: verbs.fork(fork, out, config=config, overrides=settings, **watched))


def resume(
    url: Url,
    overrides: Overrides = None,
    fork: Annotated[
        str | None,
        typer.Option(
            metavar="OUT",
            help="Path or URL of a new run, with any settings, that takes over from RUN everything that is still valid.",
        ),
    ] = None,
    single_writer: SingleWriter = False,
) -> None:
    """Finish an interrupted run; refused if anything has changed that would change the numbers, unless it is forked."""
    from ntkpipe.pipeline import run as verbs

    settings = _settings(overrides, single_writer)
    if fork is None:
        _carry_out(lambda **watched: verbs.resume(url, overrides=settings, **watched))
    else:
        _carry_out(lambda **watched: verbs.fork(url, fork, overrides=settings, **watched))


def extend(
    url: Url,
    out: Out = None,
    overrides: Overrides = None,
    config: Annotated[
        str | None, typer.Option(metavar="CONFIG", help="Of the new run; by default that of RUN with --set applied.")
    ] = None,
    single_writer: SingleWriter = False,
) -> None:
    """Start a new run with more samples, of which only features and blocks of the new ones are computed."""
    from ntkpipe.pipeline import run as verbs

    settings = _settings(overrides, single_writer)
    _carry_out(lambda **watched: verbs.extend(url, out, config=config, overrides=settings, **watched))


def _settings(overrides: list[str] | None, single_writer: bool) -> list[str]:
    return [*(overrides or ()), *(["store.single_writer=true"] if single_writer else [])]


def _carry_out(verb: Callable[..., Run]) -> None:
    """Show the progress of a run and what it has found; SIGTERM asks its driver to stop."""
    console, started, stop = Console(), time.monotonic(), StopRequest()
    with stop.listening(), ProgressDisplay(console) as progress:
        finished = verb(progress=progress, stop=stop)
    print_summary(console, finished, time.monotonic() - started)
