"""Times exact and estimated Neural Tangent Kernels against the floor, explicit Jacobians and other packages.

    python tests/benchmarks/jacobians.py --workload mlp,resnet --repeats 3 --peers

See README.md in this folder for what the figures mean.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import report
from benchmarks.measure import machine
from benchmarks.suite import measure_workload
from benchmarks.workloads import WORKLOADS, WorkloadUnavailable, build


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, and print it."""
    options = _parse(arguments)
    device = torch.device(options.device)
    before = machine(device)
    results = []
    for name in options.workload:
        try:
            workload = build(name, options.samples.get(name, options.samples.get("")), device)
        except WorkloadUnavailable as error:
            print(f"{name} is left out: it {error}", file=sys.stderr)
            continue
        results.append(measure_workload(workload, options.dim, options.repeats, options.peers))
    machines = before, machine(device)
    if options.json:
        settings = {"dim": options.dim, "repeats": options.repeats}
        options.json.write_text(
            json.dumps({"settings": settings, **report.as_data(machines, results)}, indent=1) + "\n"
        )
    if options.markdown:
        print(report.markdown(machines, results))
    else:
        report.print_tables(machines, results)
    return 0 if len(results) == len(options.workload) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = ",".join(WORKLOADS)
    parser.add_argument("--workload", type=_workloads, default=known, help=f"which of {known} (all)")
    parser.add_argument(
        "--samples", type=_samples, default="", help="N for all workloads, or for some: resnet=8,minilm=4"
    )
    parser.add_argument("--dim", type=int, default=2048, help="K, the number of features per sample (2048)")
    parser.add_argument("--repeats", type=_at_least_one, default=3, help="rounds to take the median of (3)")
    parser.add_argument("--peers", action="store_true", help="also time traker and dattri where installed (MLP only)")
    parser.add_argument("--device", default="cpu", help="a PyTorch device (cpu)")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    return parser.parse_args(arguments)


def _workloads(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(f"there is no workload {unknown[0]!r}, only {', '.join(WORKLOADS)}")
    return names


def _samples(text: str) -> dict[str, int]:
    """Return the number of samples by workload; the empty name stands for all others."""
    found: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.rpartition("=")
        if (name and name not in WORKLOADS) or not number.isdecimal() or int(number) < 2:
            raise argparse.ArgumentTypeError(f"{part!r} is not a number of samples of at least 2, nor name=number")
        found[name] = int(number)
    return found


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
