"""What the storage benchmark has measured, as tables and as plain data."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from benchmarks.measure import Machine, Timing, timed
from benchmarks.report import Grid

CPU = torch.device("cpu")

NOTES = (
    "Medians over the repeats; ntkpipe and what it is compared with take turns, so compare ratios.",
    "ratio: how fast ntkpipe is relative to it; 1 is as fast, less is slower.",
    "Reading is from the page cache, and so is writing without fsync: both are limited by copies and checksums.",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One thing, done by ntkpipe and by something barer."""

    section: str
    what: str
    unit: Literal["bytes", "each", "whole"]
    """What its amount is: bytes, or operations whose time is told for each of them or for all."""
    amount: int
    """Done in one call."""
    ours: Timing
    bare: Timing | None
    bare_is: str
    """What ntkpipe is compared with."""
    least_ratio: float | None = None
    """That is aimed for."""
    most_seconds: float | None = None
    """For one operation, or for all of them if they are told as a whole, that are aimed for."""

    @property
    def ratio(self) -> float | None:
        """Speed relative to what it is compared with."""
        return None if self.bare is None else self.bare.median / self.ours.median

    @property
    def seconds(self) -> float:
        """Of ntkpipe, for one operation or for all."""
        return self.ours.median / (self.amount if self.unit == "each" else 1)

    @property
    def met(self) -> bool | None:
        """Whether what is aimed for was reached; None if nothing is."""
        reached = []
        if self.least_ratio is not None and self.ratio is not None:
            reached.append(self.ratio >= self.least_ratio)
        if self.most_seconds is not None:
            reached.append(self.seconds <= self.most_seconds)
        return all(reached) if reached else None


Prepare = Callable[[int], Callable[[], object]]
"""Makes ready for a round, which is not timed, and returns what is timed."""


def take_turns(ours: Prepare, bare: Prepare, repeats: int) -> tuple[Timing, Timing]:
    """Time two things in turn, each first in every other round, after a round that does not count.

    What was written before is first written out, so that it is not written out meanwhile.
    """
    os.sync()
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    calls: Mapping[str, Prepare] = {"ours": ours, "bare": bare}
    for number in range(repeats + 1):
        for name in sorted(calls, reverse=number % 2 == 0):
            _, seconds = timed(calls[name](number), CPU)
            if number:
                found[name].append(seconds)
    return Timing(tuple(found["ours"])), Timing(tuple(found["bare"]))


def repeated(call: Callable[[], object]) -> Prepare:
    """Return a call that needs no preparation."""
    return lambda number: call


def storage_grids(rows: Sequence[Row]) -> list[Grid]:
    """Return one table per section."""
    header = ("what", "amount", "ntkpipe", "compared with", "its figure", "ratio", "aim")
    return [
        Grid(section, header, tuple(_cells(row) for row in rows if row.section == section))
        for section in dict.fromkeys(row.section for row in rows)
    ]


def storage_as_data(machines: tuple[Machine, Machine], rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything that was measured, every repeat of it."""
    measured = [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in rows]
    return {"before": asdict(machines[0]), "after": asdict(machines[1]), "rows": measured, "notes": list(NOTES)}


def _cells(row: Row) -> tuple[str, ...]:
    amount = f"{row.amount / 2**20:,.0f} MiB" if row.unit == "bytes" else f"{row.amount:,}"
    bare = "-" if row.bare is None else _figure(row, row.bare)
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    return row.what, amount, _figure(row, row.ours), row.bare_is or "-", bare, ratio, _aim(row)


def _figure(row: Row, timing: Timing) -> str:
    if row.unit == "bytes":
        return f"{row.amount / timing.median / 1e6:,.0f} MB/s"
    seconds = timing.median / (row.amount if row.unit == "each" else 1)
    text = f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    return f"{text} each" if row.unit == "each" else text


def _aim(row: Row) -> str:
    aims = []
    if row.least_ratio is not None:
        aims.append(f"ratio {row.least_ratio:g}")
    if row.most_seconds is not None:
        aims.append(f"{row.most_seconds:g} s" if row.most_seconds >= 1 else f"{1e3 * row.most_seconds:g} ms")
    return f"{', '.join(aims)}: {'reached' if row.met else 'MISSED'}" if aims else "-"
