"""What every fault was survived with: one table per test session, and one way to compare runs.

A pytest plugin that ``tests/conftest.py`` loads. Tests that inject faults report to the fixture ``fault_table``; the table
is printed at the end of the session, and written to the file of ``--fault-table``.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import pytest

if TYPE_CHECKING:
    from ntkpipe.storage.stores.base import AbstractStore

RESULTS = ("data.zarr", "solutions", "analyses")
"""The folders of a run whose bytes must not depend on what happened on the way; those of ``runs.chunk_hashes``."""

HEAD = ("fault", "tries", "survived", "bytes compared", "differing")


@dataclass(slots=True)
class FaultRow:
    """What is known of one fault."""

    fault: str
    tries: int = 0
    survived: int = 0
    compared_bytes: int = 0
    differing_bytes: int = 0

    @property
    def cells(self) -> tuple[str, ...]:
        """As a row of text."""
        numbers = (self.tries, self.survived, self.compared_bytes, self.differing_bytes)
        return (self.fault, *(f"{number:,}" for number in numbers))


@final
class FaultTable:
    """Adds up what tests have found, by fault, in the order in which faults were first met."""

    def __init__(self) -> None:
        self._rows: dict[str, FaultRow] = {}

    def add(self, fault: str, tries: int, survived: int, compared_bytes: int, differing_bytes: int = 0) -> None:
        """Count tries at a fault; the calling test fails unless all of them were survived with equal bytes.

        Args:
            fault: What was done, such as ``SIGKILL of a worker``.
            tries: How often it was done.
            survived: After how many of them the run was finished, or refused as it should be.
            compared_bytes: Of the results, with those of an undisturbed run; 0 where there is nothing to compare.
            differing_bytes: How many of them were not equal.
        """
        self.merge([asdict(FaultRow(fault, tries, survived, compared_bytes, differing_bytes))])
        if tries < 1 or survived != tries:
            pytest.fail(f"{fault}: {survived} of {tries} tries were survived")
        if differing_bytes:
            pytest.fail(f"{fault}: {differing_bytes:,} of {compared_bytes:,} bytes differ from an undisturbed run's")

    def merge(self, rows: list[dict[str, Any]]) -> None:
        """Add what another process has found."""
        for found in rows:
            row = self._rows.setdefault(found["fault"], FaultRow(found["fault"]))
            row.tries += found["tries"]
            row.survived += found["survived"]
            row.compared_bytes += found["compared_bytes"]
            row.differing_bytes += found["differing_bytes"]

    def plain(self) -> list[dict[str, Any]]:
        """Return the rows without totals, fit to cross a process boundary."""
        return [asdict(row) for row in self._rows.values()]

    @property
    def rows(self) -> list[FaultRow]:
        """One row per fault, and the totals."""
        rows = list(self._rows.values())
        total = FaultRow("all faults")
        for row in rows:
            total.tries += row.tries
            total.survived += row.survived
            total.compared_bytes += row.compared_bytes
            total.differing_bytes += row.differing_bytes
        return [*rows, total] if rows else []

    def lines(self) -> list[str]:
        """Return the table as Markdown that is aligned for terminals, too."""
        table = [HEAD, *(row.cells for row in self.rows)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(HEAD))]
        ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        aligned = [
            [cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]
            for cells in table
        ]
        return [f"| {' | '.join(cells)} |" for cells in (aligned[0], ruler, *aligned[1:])]

    def write(self, path: Path) -> None:
        """Write the table as JSON, or as Markdown where the file's name says so."""
        if path.suffix == ".md":
            path.write_text("\n".join(self.lines()) + "\n", "utf-8")
        else:
            path.write_text(json.dumps([asdict(row) for row in self.rows], indent=1) + "\n", "utf-8")


def compare_runs(
    run: "str | os.PathLike[str] | AbstractStore", reference: "str | os.PathLike[str] | AbstractStore"
) -> tuple[int, int]:
    """Compare array metadata, chunks, solutions and analyses of two runs, on any stores.

    Returns:
        How many bytes were compared, and how many of them differ; what only one of the runs has differs as a whole.
    """
    # Not at the top: pytest loads plugins before it can report that a module of ntkpipe is broken.
    from ntkpipe.storage.stores.registry import open_store

    stores = [open_store(item) if isinstance(item, str | os.PathLike) else item for item in (run, reference)]
    compared = differing = 0
    for folder in RESULTS:
        keys = sorted({key for store in stores for key in store.names(folder)})
        first, second = (store.get_many(keys) for store in stores)
        for (_, one), (_, other) in zip(first, second, strict=True):
            size = max(len(one or b""), len(other or b""))
            compared += size
            if one != other:
                differing += differing_bytes(one or b"", other or b"") or 1
    if not compared:
        pytest.fail(f"{stores[0].url} and {stores[1].url} hold no results: there is nothing to compare")
    return compared, differing


def differing_bytes(one: bytes, other: bytes) -> int:
    """Return in how many places two contents differ; what is longer differs where the other has ended."""
    common = min(len(one), len(other))
    return sum(a != b for a, b in zip(one[:common], other[:common], strict=True)) + max(len(one), len(other)) - common


TABLE = pytest.StashKey[FaultTable]()
ROWS = "fault_rows"
"""Under which the processes of a distributed session hand in their tables."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--fault-table``."""
    parser.addoption("--fault-table", metavar="FILE", help="write the table of faults to FILE (.json or .md)")


def pytest_configure(config: pytest.Config) -> None:
    """Start with an empty table."""
    config.stash[TABLE] = FaultTable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the table in, in a process of a distributed session."""
    handed_in = getattr(session.config, "workeroutput", None)
    if handed_in is not None:
        handed_in[ROWS] = session.config.stash[TABLE].plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the table of a process of a distributed session; one that has crashed has none."""
    node.config.stash[TABLE].merge(getattr(node, "workeroutput", {}).get(ROWS, []))


@pytest.fixture(scope="session")
def fault_table(pytestconfig: pytest.Config) -> FaultTable:
    """The session's table of faults."""
    return pytestconfig.stash[TABLE]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and say so if some tests could not add to it."""
    table = config.stash[TABLE]
    if not table.rows:
        return
    terminalreporter.write_sep("=", "faults")
    for line in table.lines():
        terminalreporter.write_line(line)
    failed = sum(len(terminalreporter.stats.get(outcome, ())) for outcome in ("failed", "error"))
    if failed:
        terminalreporter.write_line(f"{failed} tests have failed: the table may lack what they would have added.")
    path = config.getoption("--fault-table")
    if path:
        table.write(Path(path))
