"""Eight kernels of one network in one pass over its data, against each of them in a run of its own.

Times are those of the tasks that compute features and kernels, from their receipts; the preparation of the model, which
every run does once, is left out. Runs alternate, and medians are reported.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

import ntkpipe

KINDS = ("trntk", "trntk0", "pntk", "lpntk", "loss", "ck", "em", "nngp")


def config(kinds: Sequence[str], dim: int | None) -> ntkpipe.RunConfig:
    """Return the digits job with some kernels, in this process."""
    projection = "{kind: none}" if dim is None else f"{{kind: auto, dim: {dim}}}"
    return ntkpipe.load_config(
        "digits",
        [
            f"kernels=[{', '.join(f'{{kind: {kind}}}' for kind in kinds)}]",
            f"projection={projection}",
            "solve=[]",
            "analyses=[]",
            "resources.executor=serial",
            "data.pairs=[[train, train]]",
        ],
    )


def seconds(kinds: Sequence[str], dim: int | None) -> float:
    """Return what the tasks of a run took."""
    with tempfile.TemporaryDirectory() as folder:
        run = ntkpipe.run(config(kinds, dim), Path(folder) / "run")
        receipts = [
            json.loads(path.read_text())
            for stage in ("features", "kernel")
            for path in (Path(run.url) / "receipts" / stage).rglob("*.json")
        ]
    return sum(receipt["seconds"] for receipt in receipts)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dim in (2048, None):
        jobs: dict[str, Sequence[str]] = {"all eight": KINDS} | {kind: (kind,) for kind in KINDS}
        found: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(options.repeats):
            for name, kinds in jobs.items():
                found[name].append(seconds(kinds, dim))
        medians = {name: statistics.median(times) for name, times in found.items()}
        alone = {name: value for name, value in medians.items() if name != "all eight"}
        dearest = max(alone, key=lambda name: alone[name])
        print(f"{'exact' if dim is None else f'K = {dim}'}")
        for name, value in medians.items():
            print(f"  {name:12s} {value:8.3f} s")
        print(f"  all eight take {medians['all eight'] / alone[dearest]:.2f} times {dearest} alone, ", end="")
        print(f"and {medians['all eight'] / sum(alone.values()):.2f} times all of them in runs of their own")


if __name__ == "__main__":
    main()
