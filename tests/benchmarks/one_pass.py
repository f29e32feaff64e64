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
from typing import Any

import torch
from torch import nn
from workloads import ResNet18

import ntkpipe

KERNELS: dict[str, dict[str, Any]] = {
    "trntk": {"kind": "trntk"},
    "trntk0": {"kind": "trntk0"},
    "last layer": {"kind": "trntk0", "name": "last-layer", "parameters": ["last:1"]},
    "pntk": {"kind": "pntk"},
    "loss": {"kind": "loss"},
    "ck": {"kind": "ck"},
    "nngp": {"kind": "nngp"},
    # A million activations of few samples: products of them are cheaper than random signs for all.
    "em": {"kind": "em", "projection": {"kind": "none"}},
}


def build_resnet() -> nn.Module:
    """Return an untrained ResNet-18 for images of 32 x 32 pixels."""
    torch.manual_seed(0)
    return ResNet18()


def load_noise(samples: int) -> ntkpipe.Samples:
    """Return images of noise, with classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 3, 32, 32, generator=generator)
    return ntkpipe.Samples(images, torch.randint(10, (samples,), generator=generator))


def config(workload: str, names: Sequence[str], dim: int | None, samples: int) -> dict[str, Any]:
    """Return a job with some kernels, in this process."""
    model: dict[str, Any] = {"target": "one_pass:build_resnet"}
    split: dict[str, Any] = {"kind": "python", "target": "one_pass:load_noise", "options": {"samples": samples}}
    if workload == "digits":
        model = {
            "target": "ntkpipe.workers.examples.digits:build_model",
            "weights": "package://ntkpipe.workers.examples/digits_cnn.safetensors",
        }
        split |= {"target": "ntkpipe.workers.examples.digits:load", "options": {"split": "train"}}
    return {
        "name": "one-pass",
        "model": model,
        "data": {"splits": {"train": split}},
        "kernels": [KERNELS[name] for name in names],
        "projection": {"kind": "none"} if dim is None else {"kind": "auto", "dim": dim},
        "resources": {"executor": "serial"},
    }


def seconds(document: dict[str, Any]) -> float:
    """Return what the tasks of a run took."""
    with tempfile.TemporaryDirectory() as folder:
        run = ntkpipe.run(document, Path(folder) / "run")
        receipts = [
            json.loads(path.read_text())
            for stage in ("features", "kernel")
            for path in (Path(run.url) / "receipts" / stage).rglob("*.json")
        ]
    return float(sum(receipt["seconds"] for receipt in receipts))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=("resnet", "digits"), default="resnet")
    parser.add_argument("--dims", type=int, nargs="*", default=[2048, 0], help="K; 0 for exact kernels.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="Of the ResNet; the digits are always 1,433.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for dim in options.dims:
        jobs: dict[str, Sequence[str]] = {"all eight": tuple(KERNELS)} | {name: (name,) for name in KERNELS}
        found: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(options.repeats):
            for name, names in jobs.items():
                found[name].append(seconds(config(options.workload, names, dim or None, options.samples)))
        medians = {name: statistics.median(times) for name, times in found.items()}
        alone = {name: value for name, value in medians.items() if name != "all eight"}
        dearest = max(alone, key=lambda name: alone[name])
        print(f"{options.workload}, {f'K = {dim}' if dim else 'exact'}")
        for name, value in medians.items():
            print(f"  {name:12s} {value:8.3f} s")
        print(f"  all eight take {medians['all eight'] / alone[dearest]:.2f} times {dearest} alone, ", end="")
        print(
            f"and {medians['all eight'] / sum(alone.values()):.2f} times all of them in runs of their own", flush=True
        )


if __name__ == "__main__":
    main()
