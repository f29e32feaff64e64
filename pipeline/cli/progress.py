"""Showing progress: bars on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import final

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ntkpipe.pipeline.cli.terminal import printable

LINE_SECONDS = 5.0
"""Without a terminal a line is printed at most this often per stage, and at its end."""


@final
class ProgressDisplay:
    """Shows stages as they advance; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = (
            Progress(
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
            )
            if console.is_terminal
            else None
        )
        self._ids: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._total: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}

    def __enter__(self) -> "ProgressDisplay":
        """Begin to draw."""
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str, done: int, total: int) -> None:
        """Show a new stage."""
        self._done[name], self._total[name], self._bytes[name] = done, total, 0
        self._started[name] = self._printed[name] = time.monotonic()
        if self._bars is not None:
            self._ids[name] = self._bars.add_task(name, total=total, completed=done, rate="")
        elif done == total:
            self._line(name)

    def task(self, name: str, num_bytes: int) -> None:
        """Advance a stage by one task."""
        self._done[name] += 1
        self._bytes[name] += num_bytes
        if self._bars is not None:
            self._bars.update(self._ids[name], advance=1, rate=self._rate(name))
        elif self._done[name] == self._total[name] or time.monotonic() - self._printed[name] > LINE_SECONDS:
            self._printed[name] = time.monotonic()
            self._line(name)

    def attempt_failed(self, name: str) -> None:
        """Nothing yet."""

    def workers(self, ready: int, wanted: int) -> None:
        """Nothing yet."""

    def note(self, text: str) -> None:
        """Print a line between the bars."""
        self._console.print(printable(text), highlight=False, markup=False)

    def _line(self, name: str) -> None:
        count = f"{self._done[name]}/{self._total[name]}"
        self._console.print(f"{name:<9} {count:>11}  {self._rate(name)}".rstrip(), highlight=False)

    def _rate(self, name: str) -> str:
        seconds = max(time.monotonic() - self._started[name], 1e-9)
        return f"{decimal(self._bytes[name])} in {seconds:.1f} s" if self._bytes[name] else ""
