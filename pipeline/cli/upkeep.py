"""Commands that look after what a run has stored: verify, gc."""

from typing import Annotated

import typer
from rich.console import Console

from ntkpipe.configs.units import size
from ntkpipe.pipeline.cli.running import Url, resume
from ntkpipe.pipeline.cli.terminal import command, say
from ntkpipe.storage import layout
from ntkpipe.storage.features import PREPARE_STAGE
from ntkpipe.storage.verify import Finding

SHOWN = 20
"""Foreign objects that are named one by one."""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for verb in (verify, gc):
        app.command()(verb)


def verify(
    url: Url,
    repair: Annotated[bool, typer.Option(help="Compute damaged tasks again.")] = False,
) -> None:
    """Re-read every stored chunk and compare it with its receipt."""
    from ntkpipe.pipeline.upkeep import verify as verify_run

    console = Console()
    num_tasks = num_chunks = num_bytes = 0
    findings: list[Finding] = []
    for checked in verify_run(url, repair=repair):
        findings += checked.findings
        if checked.receipt is not None:
            num_tasks += checked.receipt.stage != PREPARE_STAGE
            num_chunks += len(checked.receipt.written)
            num_bytes += checked.receipt.num_bytes
    for finding in findings:
        name = finding.task if finding.stage == layout.SEGMENTS else f"{finding.stage} task {finding.task}"
        say(console, f"{name}: {finding.problem}")
    say(console, f"checked: {num_tasks:,} tasks, {num_chunks:,} chunks and objects, {size(num_bytes)}")
    if not findings:
        console.print("Everything is as it was committed.")
    elif repair:
        resume(url)
    else:
        found = "1 problem" if len(findings) == 1 else f"{len(findings):,} problems"
        say(console, f"{found} found. `{command('verify', url, '--repair')}` computes again what is affected.")
        raise typer.Exit(1)


def gc(
    url: Url,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what killed processes and finished work have left in a run; nothing that a receipt names is touched."""
    from ntkpipe.pipeline.upkeep import gc as collect

    console, found = Console(), collect(url, dry_run=dry_run)
    for kind, (number, num_bytes) in found.by_kind().items():
        say(console, f"{kind}: {number:,}, {size(num_bytes)}")
    for key in found.foreign[:SHOWN]:
        say(console, f"left alone, no run has written it: {key}")
    if len(found.foreign) > SHOWN:
        say(console, f"left alone: {len(found.foreign) - SHOWN:,} more")
    verb = "would be removed" if dry_run else "removed"
    say(console, f"{verb}: {len(found.pieces):,} objects, {size(found.num_bytes)}")
