"""Times ntkpipe's solvers on real data against a bare factorisation and the solvers of other packages.

    python tests/benchmarks/solvers.py --jobs A,disk,B,C --repeats 3 --peers

See README.md in this folder for what the figures mean.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import report, solver_report
from benchmarks.measure import machine
from benchmarks.solver_problems import PROBLEMS
from benchmarks.solver_suite import measure_problem
from benchmarks.workloads import WorkloadUnavailable

FEWEST = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and print it; 1 if anything is left out."""
    options = _parse(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    before, results = machine(torch.device("cpu")), []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.jobs:
            problem = PROBLEMS[name]
            try:
                found = measure_problem(
                    problem,
                    options.samples.get(name, options.samples.get("", problem.num_samples)),
                    Path(folder) / name,
                    repeats=options.repeats,
                    with_peers=options.peers,
                    threads=torch.get_num_threads(),
                    timeout_seconds=options.timeout,
                )
            except WorkloadUnavailable as error:
                print(f"{name} is left out: it {error}", file=sys.stderr)
                continue
            results.append(found)
    machines = before, machine(torch.device("cpu"))
    if options.json:
        options.json.write_text(json.dumps(solver_report.solvers_as_data(machines, results), indent=1) + "\n")
    grids, notes = solver_report.solver_grids(results), solver_report.notes(results)
    if options.markdown:
        print(report.markdown_grids(grids, report.facts(*machines), notes))
    else:
        report.print_grids(grids, (report.facts(*machines), *notes))
    return 0 if len(results) == len(options.jobs) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = ",".join(PROBLEMS)
    parser.add_argument("--jobs", type=_jobs, default=known, help=f"which of {known} (all)")
    parser.add_argument("--samples", type=_samples, default="", help="N for all jobs, or for some: A=1000,C=6000")
    parser.add_argument("--repeats", type=_at_least_one, default=3, help="rounds to take the median of (3)")
    parser.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=False, help="also time other packages (no)"
    )
    parser.add_argument("--threads", type=_at_least_one, help="of every process (PyTorch's own choice)")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a call is given up (900)")
    parser.add_argument(
        "--folder", type=Path, help="where arrays and tiles are kept meanwhile; on a disk, not in memory"
    )
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    return parser.parse_args(arguments)


def _jobs(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PROBLEMS]:
        raise argparse.ArgumentTypeError(f"there is no job {unknown[0]!r}, only {', '.join(PROBLEMS)}")
    return names


def _samples(text: str) -> dict[str, int]:
    """Return the number of samples by job; the empty name stands for all others."""
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.rpartition("=")
        if (name and name not in PROBLEMS) or not number.isdecimal() or int(number) < FEWEST:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not a number of samples of at least {FEWEST}, nor name=number"
            )
        found[name] = int(number)
    return found


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
