"""The command that looks whether everything is there, and how fast it is: doctor."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.pipeline.cli.running import Overrides
from ntkpipe.pipeline.cli.terminal import say

if TYPE_CHECKING:
    from ntkpipe.pipeline.checkup import Finding

MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(doctor)


def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="With --calibrate, a job of which a few tasks are timed.")
    ] = None,
    overrides: Overrides = None,
    store: Annotated[str | None, typer.Option(metavar="URL", help="A place for runs, to be tried out.")] = None,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="A Ray cluster: HOST:PORT, or http://HOST:8265 of its job server.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure how fast this machine, the store and the job's tasks are.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --calibrate, a YAML file for `ntkpipe plan --calibration`."),
    ] = None,
    device: Annotated[str, typer.Option(help="With --calibrate, the PyTorch device.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check this machine, a store and a cluster; exit code 1 if there is a problem."""
    from ntkpipe.pipeline.checkup import findings

    if not calibrate and (config is not None or out is not None):
        raise ConfigError(
            "a configuration and --out belong to --calibrate: `ntkpipe doctor CONFIG --calibrate --out FILE`."
        )
    console, found = Console(), []
    for finding in findings(store=store, address=address):
        found.append(finding)
        if not as_json:
            say(console, f"{MARKS[finding.status]} {finding.name}: {finding.text}")
            if finding.advice:
                say(console, f"        {finding.advice}")
    bad = any(finding.status == "problem" for finding in found)
    measured = _calibrated(config, overrides, store, device) if calibrate and not bad else None
    if as_json:
        _print_json(found, measured)
    elif measured is not None:
        _print(console, measured)
    if measured is not None and out is not None:
        _write(out, measured, quiet=as_json)
    if bad:
        raise typer.Exit(1)


def _calibrated(config: str | None, overrides: list[str] | None, store: str | None, device: str) -> Calibration:
    from ntkpipe.configs.loading import load_config
    from ntkpipe.pipeline.prediction.calibrating import calibrate
    from ntkpipe.storage.stores.registry import open_store

    job = None if config is None else load_config(config, overrides or ())
    return calibrate(device=device, config=job, store=None if store is None else open_store(store))


def _print_json(found: "list[Finding]", measured: Calibration | None) -> None:
    document = {"findings": [asdict(finding) for finding in found]}
    measurement = {} if measured is None else {"calibration": measured.model_dump(mode="json")}
    typer.echo(json.dumps(document | measurement, indent=1))


def _print(console: Console, found: Calibration) -> None:
    for name, device in (("all cores", found.device), ("one thread", found.single)):
        if device is not None:
            label = name if device.kind == "cpu" else "GPU"
            say(
                console,
                f"{label}: {device.float32_flops / 1e9:,.1f} Gflops float32, {device.float64_flops / 1e9:,.1f} float64, "
                f"{device.bytes / 1e9:,.1f} GB/s memory, {device.fft_flops / 1e9:,.1f} Gflops transforms, "
                f"{device.scatters / 1e6:,.0f} M scatters/s, {device.launch_seconds * 1e6:,.1f} us a launch",
            )
    if found.storage is not None:
        storage = found.storage
        say(
            console,
            f"storage: {storage.worker_read / 1e6:,.0f} MB/s read, {storage.worker_write / 1e6:,.0f} MB/s written, "
            f"{storage.request_seconds * 1e3:,.2f} ms a request, {storage.commits:,.0f} receipts/s",
        )
    for name, stage in found.stages.items():
        say(
            console,
            f"{name}: {stage.seconds * 1e3:,.1f} ms a task on each of {found.workers} workers (median of {stage.num_tasks}), "
            f"{stage.predicted * 1e3:,.1f} ms by the roofline; a worker's first one {stage.first_seconds:,.2f} s more",
        )


def _write(out: Path, found: Calibration, *, quiet: bool) -> None:
    try:
        # Others may be reading it.
        part = out.with_name(f".{out.name}.{os.getpid()}")
        part.write_text(found.text(), "utf-8")
        part.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.") from None
    if not quiet:
        typer.echo(f"wrote {out}")
