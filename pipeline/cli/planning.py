"""The command that looks before a run: plan."""

import json
from typing import Annotated

import typer
from rich.console import Console

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.cli.running import Config, Overrides

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="What the job would run on: 8xh100, 2x8xh100 (nodes of eight), 4xcpu,2xa100-80@s3, a name, or a YAML file.",
    ),
]
CalibrationFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="What `ntkpipe doctor --calibrate --out FILE` has measured.")
]
CatalogueFiles = Annotated[
    list[str] | None, typer.Option(metavar="FILE", help="Devices and storages of your own, as YAML.")
]
Samples = Annotated[
    list[str] | None,
    typer.Option(metavar="SPLIT=N", help="Plan for another number of samples, such as train=1000000."),
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(plan)


def plan(
    config: Config,
    overrides: Overrides = None,
    cluster: Cluster = None,
    calibration: CalibrationFile = None,
    catalogue: CatalogueFiles = None,
    samples: Samples = None,
    explain: Annotated[
        bool, typer.Option(help="Show for every kernel and parameter which way is taken, and why.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Print what a configuration would do and cost, here or on a described cluster; computes nothing."""
    # A mistake is told at once, without PyTorch, which takes a second to import.
    checked = load_config(config, overrides or ())
    from ntkpipe.pipeline.cli.plan_text import print_forecast, print_plan
    from ntkpipe.pipeline.prediction.described import described_cluster
    from ntkpipe.pipeline.prediction.document import plan_document
    from ntkpipe.pipeline.prediction.fitting import check_fit, misfits
    from ntkpipe.pipeline.prediction.forecast import forecast
    from ntkpipe.pipeline.prediction.workload import Workload
    from ntkpipe.pipeline.run import plan as plan_run

    measured, described = described_cluster(cluster, calibration, catalogue or ())
    _, probe = plan_run(checked)
    workload = Workload.of(probe)
    if samples:
        workload = workload.scaled(parse_samples(samples))
    target = described(workload.config.resources) if described is not None else None
    problems = misfits(workload, target) if target is not None else []
    found = None
    if target is not None and not any(problem.hinders_times for problem in problems):
        found = forecast(workload, target, measured)
    if as_json:
        typer.echo(json.dumps(plan_document(workload, found, problems), indent=1))
    else:
        console = Console()
        print_plan(console, workload, explain=explain)
        if found is not None:
            print_forecast(console, found)
    if target is not None:
        check_fit(workload, target)


def parse_samples(texts: list[str]) -> dict[str, int]:
    """Return numbers of samples by split.

    Raises:
        ConfigError: A text is not of the form SPLIT=N.
    """
    found = {}
    for text in texts:
        split, _, number = text.partition("=")
        digits = number.replace("_", "").replace(",", "")
        if not split or not digits.isdecimal():
            raise ConfigError(f"--samples {text!r} is not of the form SPLIT=N, such as train=1000000.")
        found[split] = int(digits)
    return found
