"""Times chunks, receipts, resuming and verifying against bare zarr, bare files and bare clients of object stores.

    python tests/benchmarks/storage.py --mebibytes 256 --receipts 100000 --repeats 5 --peers

See README.md in this folder for what the figures mean.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import report
from benchmarks.measure import machine
from benchmarks.storage_chunks import measure_chunks
from benchmarks.storage_ledger import measure_ledger
from benchmarks.storage_objects import measure_objects
from benchmarks.storage_report import CPU, NOTES, Row, storage_as_data, storage_grids
from benchmarks.workloads import WorkloadUnavailable

IN_MEMORY = Path("/dev/shm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and print it; 1 if anything is left out."""
    options = _parse(arguments)
    before, rows, left_out = machine(CPU), [], False
    try:
        for row in _measure(options):
            rows.append(row)
            print(f"{row.section}: {row.what}", file=sys.stderr)
    except WorkloadUnavailable as error:
        print(f"the object store is left out: it {error}", file=sys.stderr)
        left_out = True
    machines = before, machine(CPU)
    if options.json:
        options.json.write_text(json.dumps(storage_as_data(machines, rows), indent=1) + "\n")
    if options.markdown:
        print(report.markdown_grids(storage_grids(rows), report.facts(*machines), NOTES))
    else:
        report.print_grids(storage_grids(rows), (report.facts(*machines), *NOTES))
    return 1 if left_out else 0


def _measure(options: argparse.Namespace) -> Iterator[Row]:
    places = {"local disk": options.folder, "memory": options.memory_folder}
    for place, root in places.items():
        if root is None and place == "memory":
            continue
        with tempfile.TemporaryDirectory(dir=root, prefix="ntkpipe-bench-") as folder:
            yield from measure_chunks(place, Path(folder), options.mebibytes, options.repeats)
            yield from measure_ledger(place, Path(folder), options.commits, options.receipts, options.repeats)
    if options.peers:
        # Sockets live below this folder and their paths must be short.
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="nt") as folder:
            yield from measure_objects(Path(folder), options.mebibytes, options.objects, options.repeats)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mebibytes", type=_at_least_one, default=256, help="of chunks of each kind (256)")
    parser.add_argument("--commits", type=_at_least_one, default=1000, help="receipts that are committed (1000)")
    parser.add_argument("--receipts", type=_at_least_one, default=100_000, help="of a run to resume (100000)")
    parser.add_argument("--objects", type=_at_least_one, default=500, help="small objects on the S3 server (500)")
    parser.add_argument("--repeats", type=_at_least_one, default=5, help="rounds to take the median of (5)")
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also time an S3 server on this machine, against bare clients (no)",
    )
    parser.add_argument("--folder", type=Path, help="where the local disk is (the folder for temporary files)")
    parser.add_argument(
        "--memory-folder",
        type=_folder,
        default=IN_MEMORY if IN_MEMORY.is_dir() else None,
        help="a folder that is kept in memory, or 'none' (/dev/shm)",
    )
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path | None:
    return None if text == "none" else Path(text)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
