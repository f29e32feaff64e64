"""Showing progress: bars on a terminal, plain lines with the same facts elsewhere."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import final

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from ntkpipe.configs.units import duration, size
from ntkpipe.pipeline.cli.terminal import printable
from ntkpipe.pipeline.meters import Clock, Meters
from ntkpipe.pipeline.status import RunStatus

LINE_SECONDS = 5.0
"""Without a terminal a line is printed at most this often per stage, and at its end."""

DRAWN_PER_SECOND = 4
"""Times that a terminal is drawn; time passes on it even where nothing is finished."""


@final
class ProgressDisplay:
    """Shows stages as they advance, several at a time where they overlap; a context manager.

    Args:
        console: Where it is shown.
        clock: That times are taken from.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._meters = Meters(clock)
        self._printed: dict[str, tuple[float, int]] = {}
        self._ids: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description:<9}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
        )
        self._live = (
            Live(get_renderable=self._draw, console=console, refresh_per_second=DRAWN_PER_SECOND)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "ProgressDisplay":
        """Begin to draw."""
        if self._live is not None:
            self._live.start(refresh=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()
            return
        for name, meter in self._meters.stages.items():
            if meter.done > self._printed[name][1]:
                self._line(name)

    def stage(self, name: str, done: int, total: int) -> None:
        """Show a new stage."""
        self._meters.stage(name, done, total)
        self._printed.setdefault(name, (self._clock(), done))
        if self._live is None and done >= total:
            self._line(name)

    def task(self, name: str, num_bytes: int) -> None:
        """Advance a stage by one task."""
        self._meters.task(name, num_bytes)
        if self._live is not None:
            return
        if self._meters.stages[name].is_whole or self._clock() - self._printed[name][0] > LINE_SECONDS:
            self._line(name)

    def attempt_failed(self, name: str) -> None:
        """Count it."""
        self._meters.attempt_failed(name)

    def workers(self, ready: int, wanted: int) -> None:
        """Keep how many there are."""
        self._meters.workers(ready, wanted)

    def note(self, text: str) -> None:
        """Print a line between the bars."""
        self._console.print(printable(text), highlight=False, markup=False)

    def _draw(self) -> Group:
        """Return what a terminal shows now."""
        for name, meter in list(self._meters.stages.items()):
            if name not in self._ids:
                self._ids[name] = self._bars.add_task(name, facts="")
            self._bars.update(
                self._ids[name], total=meter.total, completed=meter.done, facts=self._facts(name, so_far=False)
            )
        workers = self._workers()
        return Group(self._bars, *([Text(workers)] if workers else ()))

    def _line(self, name: str) -> None:
        meter = self._meters.stages[name]
        self._printed[name] = self._clock(), meter.done
        workers = "" if meter.is_whole else self._workers()
        facts = ", ".join(fact for fact in (self._facts(name), workers) if fact)
        line = f"{name:<9} {f'{meter.done}/{meter.total}':>11}  {facts}".rstrip()
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _facts(self, name: str, *, so_far: bool = True) -> str:
        """Return rate, time left and failures of a stage, as far as there is anything to be said."""
        meter, facts = self._meters.stages[name], []
        if meter.num_bytes and (so_far or meter.is_whole):
            facts.append(f"{size(meter.num_bytes)} in {duration(meter.seconds)}")
        if not meter.is_whole:
            tasks, num_bytes = meter.rates()
            facts += [f"{tasks:.3g}/s"] if tasks else []
            facts += [f"{size(num_bytes)}/s"] if num_bytes >= 1 else []
            facts += [f"{duration(left)} left"] if (left := meter.seconds_left) is not None else []
        if failed := self._meters.failed[name]:
            facts.append(f"{failed:,} failed")
        return ", ".join(facts)

    def _workers(self) -> str:
        ready, wanted = self._meters.ready, self._meters.wanted
        return "" if ready is None else f"{ready} of {wanted} workers"


def speed_lines(status: RunStatus) -> Iterator[str]:
    """Yield what the driver of a running run says of its speed; nothing for any other run."""
    told = [stage for stage in status.stages if stage.tasks_per_second is not None]
    if not told and status.workers_ready is None:
        return
    age = status.told_seconds
    yield "by what its driver said last:" if age is None else f"by what its driver said {duration(age)} ago:"
    if status.workers_ready is not None:
        yield f"  {status.workers_ready} of {status.workers_wanted} workers"
    for stage in told:
        if stage.done >= stage.total:
            continue
        facts = [f"{stage.tasks_per_second:.3g}/s"] if stage.tasks_per_second else []
        facts += [f"{size(stage.bytes_per_second)}/s"] if stage.bytes_per_second else []
        facts += [] if stage.seconds_left is None else [f"{duration(stage.seconds_left)} left"]
        facts += [f"{stage.failed_attempts:,} failed"] if stage.failed_attempts else []
        yield f"  {stage.stage}: {', '.join(facts) or 'nothing finished yet'}"
