"""Commands that start a run or go on with one: run, resume, extend."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.cli.progress import ProgressDisplay
from ntkpipe.pipeline.cli.summary import print_summary
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.pipeline.submission import check_place

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
Wheels = Annotated[
    list[Path] | None,
    typer.Option(
        "--wheel",
        metavar="FILE",
        help="Code that the cluster does not have, without what it requires; may be given more than once.",
    ),
]
Python = Annotated[
    str, typer.Option(metavar="PATH", help=escape("Of Python on the head node [the first on its PATH]."))
]
Wait = Annotated[
    bool, typer.Option("--wait", help="Show what the job prints, and end as it ends; Ctrl-C leaves it alone.")
]


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
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="If there is a run at --out, finish it, with these runtime settings.")
    ] = False,
    single_writer: SingleWriter = False,
) -> None:
    """Carry out a configuration: features, kernels, solutions, analyses."""
    if fork is not None and or_resume:
        raise ConfigError("--fork starts a new run, --or-resume may finish an old one: give one of them.")
    if or_resume and out is not None:
        check_place(out)
    # A mistake is told at once, without PyTorch, which takes a second to import.
    checked = load_config(config, settings_of(overrides, single_writer))
    from ntkpipe.pipeline import run as verbs

    if fork is None:
        _carry_out(lambda **watched: verbs.run(checked, out, or_resume=or_resume, **watched))
    else:
        _carry_out(lambda **watched: verbs.fork(fork, out, config=checked, **watched))


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
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="Of a Ray job server, such as http://HEAD:8265: submit it there.")
    ] = None,
    wheels: Wheels = None,
    python: Python = "",
    wait: Wait = False,
    single_writer: SingleWriter = False,
) -> None:
    """Finish an interrupted run; refused if anything has changed that would change the numbers, unless it is forked."""
    settings = settings_of(overrides, single_writer)
    if address is not None:
        if fork is not None:
            raise ConfigError("a run is forked by the machine that drives it: leave --fork or --address out.")
        from ntkpipe.pipeline.cli.jobs import resume_on_cluster

        resume_on_cluster(url, address, settings, wheels or [], python, wait=wait)
        return
    if wheels or python or wait:
        raise ConfigError("--wheel, --python and --wait are for a job on a cluster: give its --address.")
    from ntkpipe.pipeline import run as verbs

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

    settings = settings_of(overrides, single_writer)
    _carry_out(lambda **watched: verbs.extend(url, out, config=config, overrides=settings, **watched))


def settings_of(overrides: list[str] | None, single_writer: bool) -> list[str]:
    """Return all assignments of a command line."""
    return [*(overrides or ()), *(["store.single_writer=true"] if single_writer else [])]


def _carry_out(verb: Callable[..., Run]) -> None:
    """Show the progress of a run and what it has found; SIGTERM asks its driver to stop."""
    console, started, stop = Console(), time.monotonic(), StopRequest()
    with stop.listening(), ProgressDisplay(console) as progress:
        finished = verb(progress=progress, stop=stop)
    print_summary(console, finished, time.monotonic() - started)
