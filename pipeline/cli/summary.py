"""What a person sees when a run is finished: where everything is, and what to try next."""

import json
from contextlib import suppress

from rich.console import Console
from rich.table import Table

from ntkpipe.configs.analyses import FidelityAnalysis
from ntkpipe.configs.errors import ChunkNotReadyError
from ntkpipe.configs.units import duration
from ntkpipe.pipeline.cli.terminal import cell, command, say
from ntkpipe.pipeline.query.run import Run
from ntkpipe.storage.solutions import SolutionRecord


def print_summary(console: Console, run: Run, seconds: float) -> None:
    """Print solutions, analyses and commands of a finished run, or of one that has ended with holes."""
    status = run.status()
    is_whole = status.state == "finished"
    say(console, f"\n{'Finished' if is_whole else 'Ended with holes'} in {duration(seconds)}: {run.url}\n")
    for stage in status.stages:
        if stage.done < stage.total:
            lacks = f"{stage.set_aside:,} set aside, {stage.left_out:,} left out"
            say(
                console,
                f"Missing of stage {stage.stage}: {stage.total - stage.done:,} of {stage.total:,} tasks ({lacks})",
            )
    records, files = [], []
    for name in run.manifest.geometry.solutions:
        with suppress(ChunkNotReadyError):
            records.append(run.solution_record(name))
    if records:
        _print_solutions(console, run, records)
    for analysis in run.config.analyses:
        with suppress(ChunkNotReadyError):
            files += run.analysis_files(analysis.name)
            if isinstance(analysis, FidelityAnalysis):
                _print_fidelity(console, run, analysis)
    pictures = [file for file in files if file.endswith(".png")]
    if pictures:
        say(console, "Pictures, each with its numbers beside it:")
        for file in pictures:
            say(console, f"  {run.url}/{file}")
    kernel = run.manifest.geometry.references[0]
    say(console, "Try next:")
    say(console, f"  {command('status', run.url)}")
    for rows, columns in run.manifest.geometry.pairs[-1:]:
        matrix, neighbors = f"kernel/{kernel}/{rows}-{columns}", f"neighbors/{kernel}/{rows}"
        say(console, f"  {command('query', run.url, matrix, '--rows', '0:3', '--cols', '0:5')}")
        if columns == run.train_split:
            say(console, f"  {command('query', run.url, neighbors, '--rows', f'id:{run.ids(rows)[0]}')}")
    say(console, f"  {command('verify', run.url)}")


def _print_solutions(console: Console, run: Run, records: list[SolutionRecord]) -> None:
    splits = list(dict.fromkeys(split for record in records for split in record.losses if split != run.train_split))
    losses = [f"{split} error" for split in splits]
    table = Table("solution", "kernel", "method", "status", "residual", "ridge", *losses)
    for column in table.columns[:3]:
        column.overflow = "fold"
    for record in records:
        residual = f"{max(record.residuals):.1e}"
        table.add_row(
            cell(record.name),
            cell(record.kernel),
            cell(record.method),
            record.status,
            residual,
            f"{record.ridge:.3g}",
            *(_loss(record, split) for split in splits),
        )
    console.print(table)
    for record in records:
        if record.chosen:
            say(console, f"{record.name}: {record.chosen}.")
        if record.status != "converged":
            say(console, f"Note: {record.name} stopped without converging (status: {record.status}).")
        if record.jitter:
            say(console, f"Note: {record.name} needed a jitter of {record.jitter:.3g} on the diagonal.")


def _loss(record: SolutionRecord, split: str) -> str:
    loss = record.losses.get(split)
    if loss is None:
        return ""
    return f"{100 * loss:.2f} %" if record.classes else f"{loss:.3g}"


def _print_fidelity(console: Console, run: Run, analysis: FidelityAnalysis) -> None:
    summary = json.loads(run.analysis(analysis.name))
    table = Table(
        "model",
        "accuracy",
        "agreement",
        "tau of margins",
        "tau",
        title=f"Fidelity on {summary['samples']} test samples",
    )
    for name, row in summary.items():
        if isinstance(row, dict):
            taus = ["undefined" if row[key] is None else f"{row[key]:.3f}" for key in ("tau_margin", "tau")]
            table.add_row(cell(name), f"{100 * row['accuracy']:.2f} %", f"{100 * row['agreement']:.2f} %", *taus)
    console.print(table)
