"""What the driver costs per task, and how well workers share a machine.

Every run is a process of its own. Figures are those of the steady state of a stage: from when every worker has finished
four tasks to the last commit. Variants take turns, so that a slow minute of a shared machine meets all of them, and medians
are reported.

overhead      milliseconds of the run per task, beyond what the tasks took on the workers, shared between them
efficiency    throughput of two workers of one thread, over twice that of one
ratio         seconds per task of two workers of one thread, over those of one process of two threads
reads         chunks of features that kernel tasks read, over those of a plan in which every strip stays with its worker
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ntkpipe
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.events import read_events
from ntkpipe.pipeline.scheduling.blocks import planned_reads, strip_height
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.probing.probe import probe_run

RUN = """
import json, sys
import ntkpipe
ntkpipe.run(json.loads(sys.argv[1]), sys.argv[2])
"""

STAGES = ("features", "kernel")

MAX_WORKER_BYTES = {"blocks": "560MiB"}
"""So that a worker keeps the features of some rows and columns of blocks only."""


def build_mlp(widths: Sequence[int]) -> nn.Module:
    """Return an untrained network of linear layers."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(widths):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def load_noise(samples: int, shape: Sequence[int], classes: int) -> ntkpipe.Samples:
    """Return inputs of noise, with classes."""
    generator = torch.Generator().manual_seed(1)
    return ntkpipe.Samples(
        torch.randn(samples, *shape, generator=generator), torch.randint(classes, (samples,), generator=generator)
    )


@dataclass(frozen=True, slots=True)
class Variant:
    """How a job is carried out."""

    name: str
    resources: dict[str, Any]
    num_workers: int


RAY_1 = Variant("1 worker, 1 thread", {"executor": "ray", "workers": 1, "threads_per_worker": 1}, 1)
RAY_2 = Variant("2 workers, 1 thread each", {"executor": "ray", "workers": 2, "threads_per_worker": 1}, 2)
SERIAL_2 = Variant("1 process, 2 threads", {"executor": "serial", "threads_per_worker": 2}, 1)
SERIAL_1 = Variant("1 process, 1 thread", {"executor": "serial", "threads_per_worker": 1}, 1)
VARIANTS = (RAY_1, RAY_2, SERIAL_2, SERIAL_1)


def job(name: str, scale: float) -> dict[str, Any]:
    """Return a job: ``tiny`` is all overhead, ``blocks`` has many of them and little memory, the others are work.

    Args:
        name: Of the job.
        scale: How many times as many samples.
    """

    def noise(samples: int, shape: Sequence[int], classes: int) -> dict[str, Any]:
        number = max(8, round(samples * scale))
        options = {"samples": number, "shape": list(shape), "classes": classes}
        return {"kind": "python", "target": "scheduling:load_noise", "options": options}

    if name == "tiny":
        model: dict[str, Any] = {"target": "scheduling:build_mlp", "options": {"widths": [8, 8, 2]}}
        split, dim, store = noise(600, [8], 2), 64, {"shard_rows": 1, "block_rows": 20}
    elif name == "blocks":
        model = {"target": "scheduling:build_mlp", "options": {"widths": [784, 32, 2]}}
        split, dim, store = noise(4800, [784], 2), 4096, {"shard_rows": 120, "block_rows": 120}
    elif name == "mlp":
        model = {"target": "scheduling:build_mlp", "options": {"widths": [784, 512, 512, 10]}}
        split, dim, store = noise(7200, [784], 10), 4096, {"shard_rows": 120, "block_rows": 480}
    else:
        model = {
            "target": "ntkpipe.workers.examples.digits:build_model",
            "weights": "package://ntkpipe.workers.examples/digits_cnn.safetensors",
        }
        split, dim, store = noise(3840, [1, 8, 8], 10), 4096, {"shard_rows": 64, "block_rows": 256}
    return {
        "name": "scheduling",
        "model": model,
        "data": {"splits": {"train": split}},
        "kernels": [{"kind": "trntk0"}],
        "projection": {"kind": "auto", "dim": dim},
        "store": store,
        "resources": {"max_worker_bytes": MAX_WORKER_BYTES[name]} if name in MAX_WORKER_BYTES else {},
    }


@dataclass(frozen=True, slots=True)
class Figures:
    """The steady state of a stage."""

    num_tasks: int
    span: float
    """Seconds."""
    busy: float
    """Seconds that workers spent on the tasks, all together."""
    num_reads: int
    """Chunks that were read, in the whole stage."""
    num_workers: int

    @property
    def seconds(self) -> float:
        """Of the run, per task."""
        return self.span / self.num_tasks

    @property
    def overhead(self) -> float:
        """Milliseconds per task beyond the work."""
        return 1e3 * (self.span - self.busy / self.num_workers) / self.num_tasks


def carry_out(document: dict[str, Any], variant: Variant, folder: Path) -> dict[str, Figures]:
    """Run a job; returns the figures of each stage."""
    url = folder / "run"
    document = document | {"resources": document["resources"] | variant.resources}
    # Ray's workers are nice to others, which is no fair comparison with a process that is not.
    environment = os.environ | {"RAY_worker_niceness": "0"}
    command = [sys.executable, "-c", RUN, json.dumps(document), str(url)]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parent, stderr=subprocess.PIPE)
    commits = [event for event in read_events(open_store(str(url))) if event.name == "commit"]
    found = {}
    for stage in STAGES:
        events = [event for event in commits if event.text("stage") == stage]
        warm = min(4 * variant.num_workers, len(events) // 2)
        steady = events[warm:]
        found[stage] = Figures(
            num_tasks=len(steady),
            span=steady[-1].time - events[warm - 1].time,
            busy=sum(event.number("seconds") for event in steady),
            num_reads=round(sum(event.number("chunks_read") for event in events)),
            num_workers=variant.num_workers,
        )
    return found


def planned(document: dict[str, Any], num_workers: int) -> int:
    """Return how many chunks the kernel tasks of a job should read."""
    found = probe_run(load_config(document))
    geometry, passes = found.geometry, found.passes
    height = strip_height(geometry, passes.kept_sides, num_workers)
    return planned_reads(geometry, height, num_workers) * -(-geometry.block_rows // geometry.shard_rows)


def measure(name: str, repeats: int, scale: float) -> dict[str, dict[str, list[Figures]]]:
    """Return the figures of all rounds, by variant and stage."""
    document = job(name, scale)
    found: dict[str, dict[str, list[Figures]]] = {variant.name: {stage: [] for stage in STAGES} for variant in VARIANTS}
    for _ in range(repeats):
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory(prefix="nt") as folder:
                for stage, figures in carry_out(document, variant, Path(folder)).items():
                    found[variant.name][stage].append(figures)
    return found


def report(name: str, found: dict[str, dict[str, list[Figures]]], scale: float) -> str:
    """Return tables."""
    lines = [f"{name}", ""]
    lines += ["| stage | variant | tasks | ms per task | of it on workers | overhead ms | reads | planned |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
    for stage in STAGES:
        for variant in VARIANTS:
            rounds = found[variant.name][stage]
            each = statistics.median(1e3 * one.seconds for one in rounds)
            busy = statistics.median(1e3 * one.busy / one.num_tasks for one in rounds)
            overhead = statistics.median(one.overhead for one in rounds)
            reads = statistics.median(one.num_reads for one in rounds)
            plan = planned(job(name, scale), variant.num_workers) if stage == "kernel" else ""
            cells = (stage, variant.name, rounds[0].num_tasks, f"{each:.1f}", f"{busy:.1f}", f"{overhead:.1f}")
            lines.append("| " + " | ".join(map(str, (*cells, f"{reads:.0f}", plan))) + " |")
    lines += ["", "| stage | efficiency of 2 workers | 2 workers over 1 process of 2 threads |", "|---|---:|---:|"]
    for stage in STAGES:
        one, two, both = (
            statistics.median(figures.seconds for figures in found[variant.name][stage])
            for variant in (RAY_1, RAY_2, SERIAL_2)
        )
        lines.append(f"| {stage} | {one / (2 * two):.2f} | {two / both:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default="tiny,blocks,mlp,cnn", help="Separated by commas.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="Times as many samples.")
    parser.add_argument("--json", type=Path, help="A file for everything that was measured.")
    options = parser.parse_args()
    everything = {}
    print(f"load average {os.getloadavg()[0]:.1f} before", flush=True)
    for name in options.jobs.split(","):
        found = measure(name, options.repeats, options.scale)
        everything[name] = {
            variant: {
                stage: [[one.num_tasks, one.span, one.busy, one.num_reads] for one in rounds]
                for stage, rounds in stages.items()
            }
            for variant, stages in found.items()
        }
        print(report(name, found, options.scale), "\n", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f} after")
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
