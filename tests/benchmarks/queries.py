"""Times reads of a stored kernel, from a warm cache and from disk, against bare reads of the same bytes.

    python tests/benchmarks/queries.py --samples 60000 --repeats 100

See README.md in this folder for what the figures mean.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import google_crc32c
import numpy as np
import numpy.typing as npt
import stored

from benchmarks import report
from benchmarks.measure import machine
from benchmarks.storage_report import CPU, Prepare, Row, repeated, storage_as_data, storage_grids, take_turns
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.storage.grid import Block
from ntkpipe.storage.stores.registry import open_store

SIDE = 256
"""Rows and columns of a small request."""

NUM_FEATURES = 256
NUM_NEIGHBORS = 10
WARM_AIM = 1e-3
COLD_AIM = 60e-3
COLD_ROUNDS = 10
"""Of requests that read from the disk: those are not many times alike."""

NOTES = (
    "Medians over the repeats; ntkpipe and what it is compared with take turns, so compare ratios.",
    "ratio: how fast ntkpipe is relative to it; 1 is as fast, less is slower.",
    "Every byte that is read is summed and compared with its receipt, also where little of a tile is wanted.",
    "cold cache: no tile is decoded yet; files are in the page cache, receipts have been read.",
    "cold disk: the page cache has been told to drop the files; a cache below the file system may still hold them.",
)

Reads = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Problem:
    """A run, of whose kernel only the tiles of two rows of tiles are there."""

    folder: Path
    num_samples: int
    block_rows: int

    @property
    def num_blocks(self) -> int:
        """In a row of tiles."""
        return -(-self.num_samples // self.block_rows)

    @property
    def block(self) -> int:
        """The first of the rows of tiles, in the middle: half of a row of the matrix is a column of stored tiles."""
        return max(0, self.num_blocks // 2 - 1)

    @property
    def row(self) -> int:
        """A row of the matrix in it."""
        return self.block * self.block_rows + min(self.block_rows, self.num_samples) // 3

    def tile(self, row: int, column: int) -> Path:
        """Return the file of a tile on either side of the diagonal."""
        folder = self.folder / "data.zarr" / "kernel" / "k" / "train-train" / "c"
        return folder / str(max(row, column)) / str(min(row, column))

    def store(self) -> None:
        """Write the run."""
        rng = np.random.default_rng(0)
        values = rng.standard_normal((self.block_rows, self.block_rows), dtype=np.float32)

        def entries(name: str, layer: str | None, _: str, rows: slice, __: str, columns: slice) -> npt.NDArray[Any]:
            found = values[: rows.stop - rows.start, : columns.stop - columns.start].copy()
            found[:, 0] += rows.start + columns.start
            return found

        def is_there(block: Block) -> bool:
            return bool({block.rows.index, block.columns.index} & {self.block, self.block + 1})

        def features(name: str, layer: str | None, split: str, rows: slice) -> npt.NDArray[Any]:
            return rng.standard_normal((rows.stop - rows.start, NUM_FEATURES), dtype=np.float32)

        shape = stored.geometry(
            {"train": self.num_samples},
            [stored.kernel("k", feature_dim=NUM_FEATURES)],
            block_rows=self.block_rows,
            shard_rows=max(1, self.block_rows // 2),
            num_classes=10,
        )
        stored.store_run(
            self.folder,
            shape,
            stored.Stored(
                entries=entries,
                diagonals=lambda name, layer, split, rows: np.ones(rows.stop - rows.start),
                features=features,
                labels={"train": np.arange(self.num_samples) % 10},
                written=is_there,
            ),
        )

    def opened(self) -> Run:
        """Open the run with an empty cache."""
        return Run(StoredRunReader(open_store(self.folder)))


def measure(problem: Problem, repeats: int) -> Iterator[Row]:
    """Time everything."""
    problem.store()
    yield from _warm(problem, repeats)
    yield from _cold(problem, min(repeats, COLD_ROUNDS))


def _warm(problem: Problem, repeats: int) -> Iterator[Row]:
    section, run, rng = "warm cache, in process", problem.opened(), np.random.default_rng(1)
    query, step, first = run.kernel("k"), problem.block_rows, problem.block * problem.block_rows
    side = min(SIDE, step, problem.num_samples - step)
    dense = query[first : first + 2 * step, 0 : 2 * step]
    names = run.sample_ids
    at = {
        "side by side, one tile": (np.arange(side), np.arange(side)),
        "side by side, four tiles": (np.arange(step - side // 2, step + side // 2),) * 2,
        "any order, one tile": tuple(rng.permutation(step)[:side] for _ in range(2)),
        "any order, four tiles": tuple(rng.permutation(min(2 * step, *dense.shape))[:side] for _ in range(2)),
    }
    for what, (rows, columns) in at.items():
        ask, bare = _asked(query, rows + first, columns), _indexed(dense, rows, columns)
        yield _row(
            section, f"{len(rows)} x {len(columns)}, {what}", ask, bare, "numpy, of a dense matrix", repeats, WARM_AIM
        )
    rows, columns = at["any order, four tiles"]
    ids = [names[position] for position in rows + first], [names[position] for position in columns]
    yield _row(
        section, f"{len(rows)} x {len(columns)} by id", _asked(query, *ids), _indexed(dense, rows, columns),
        "numpy, of a dense matrix", repeats, WARM_AIM,
    )  # fmt: skip
    row = query[problem.row, :]
    yield _row(section, "a row", lambda: query[problem.row, :], row.copy, "a copy of it", repeats)
    yield _row(
        section, f"{NUM_NEIGHBORS} neighbours", lambda: run.neighbors(problem.row, NUM_NEIGHBORS),
        lambda: np.argpartition(-row, NUM_NEIGHBORS), "numpy.argpartition of the row", repeats,
    )  # fmt: skip
    rows = rng.permutation(problem.num_samples)[:side]
    features = run.features["k"][:]
    yield _row(
        section, f"{side} rows of features, any order", lambda: run.features["k"][rows], lambda: features[rows],
        "numpy, of a dense matrix", repeats,
    )  # fmt: skip


def _cold(problem: Problem, repeats: int) -> Iterator[Row]:
    files = [problem.tile(problem.block, column) for column in range(problem.num_blocks)]
    every = np.arange(problem.num_samples)

    def with_receipts(number: int) -> Reads:
        query = problem.opened().kernel("k")
        problem_run = query._run
        problem_run.reader.version(query.name, every[problem.row : problem.row + 1], every)
        problem_run.ids("train")
        return lambda: query[problem.row, :]

    def first(number: int) -> Reads:
        return lambda: problem.opened().kernel("k")[problem.row, :]

    def dropped(prepare: Prepare) -> Prepare:
        def ready(number: int) -> Reads:
            call = prepare(number)
            for file in files:
                _drop(file)
            return call

        return ready

    bare = repeated(lambda: _read_and_sum(files))
    one = "reading and summing its tiles, one thread"
    for what, ours, floor, aim in (
        ("a row, cold cache", with_receipts, bare, COLD_AIM),
        ("a row, of a run that is opened for it", first, bare, None),
        ("a row, cold disk", dropped(with_receipts), dropped(bare), None),
    ):
        timings = take_turns(ours, floor, repeats)
        yield Row("from files", what, "whole", problem.num_samples, *timings, one, most_seconds=aim)


def _row(
    section: str, what: str, ours: Reads, bare: Reads, bare_is: str, repeats: int, aim: float | None = None
) -> Row:
    for _ in range(3):  # what is wanted a second time is held
        ours()
    timings = take_turns(repeated(ours), repeated(bare), repeats)
    return Row(section, what, "whole", 1, *timings, bare_is, most_seconds=aim)


def _asked(query: Any, rows: Any, columns: Any) -> Reads:
    return lambda: query[rows, columns]


def _indexed(dense: npt.NDArray[Any], rows: npt.NDArray[Any], columns: npt.NDArray[Any]) -> Reads:
    return lambda: dense[np.ix_(rows, columns)]


def _read_and_sum(files: Sequence[Path]) -> int:
    """Read files one after the other into the same memory, and sum their bytes: what a checked read cannot do without."""
    memory, total = bytearray(max(file.stat().st_size for file in files)), 0
    for path in files:
        with open(path, "rb", buffering=0) as file:
            size = file.readinto(memory)
        total ^= google_crc32c.value(np.frombuffer(memory, np.uint8, size))
    return total


def _drop(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and print it."""
    options = _parse(arguments)
    before, rows = machine(CPU), []
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="ntkpipe-bench-") as folder:
        for row in measure(Problem(Path(folder) / "run", options.samples, options.block_rows), options.repeats):
            rows.append(row)
            print(f"{row.section}: {row.what}", file=sys.stderr)
    machines = before, machine(CPU)
    if options.json:
        data = storage_as_data(machines, rows) | {"notes": list(NOTES)}
        options.json.write_text(json.dumps(data, indent=1) + "\n")
    if options.markdown:
        print(report.markdown_grids(storage_grids(rows), report.facts(*machines), NOTES))
    else:
        report.print_grids(storage_grids(rows), (report.facts(*machines), *NOTES))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=60_000, help="of the kernel (60000)")
    parser.add_argument("--block-rows", type=int, default=1024, help="rows and columns of a tile (1024)")
    parser.add_argument("--repeats", type=int, default=100, help="requests of each kind to take the median of (100)")
    parser.add_argument("--folder", type=Path, help="where the local disk is (the folder for temporary files)")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
