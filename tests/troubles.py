"""Models and data that make trouble in worker processes, or take their time in all, as long as files say so."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from ntkpipe.workers.sources.samples import Samples

NUM_INPUTS = 6

SAMPLE_BYTES = 512 * 2**20
"""Of memory that a greedy model asks for per sample; nothing is ever written to it."""


def is_worker():
    return Path(sys.argv[0]).name == "default_worker.py"


def load(num: int = 8, seed: int = 0) -> Samples:
    """Points whose first coordinate is their position, and labels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, NUM_INPUTS, generator=generator)
    labels = (inputs[:, 1] > 0).long()
    inputs[:, 0] = torch.arange(num)
    return Samples(inputs, labels, tuple(f"s{position}" for position in range(num)))


def fall(mood: str, inputs: torch.Tensor) -> torch.Tensor:
    """Do to this process, or to its inputs, what a mood says."""
    if mood == "exit":
        os._exit(9)
    if mood == "crash":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if mood == "hang":
        time.sleep(3600)
    if mood == "raise":
        raise ValueError("this sample is broken")
    return inputs * float("nan") if mood == "nan" else inputs


class Moody(nn.Module):
    """A small network that falls into a mood when a sample with a certain first coordinate is in the batch.

    The file of its moods has lines such as ``3 nan``; a file ``pace`` beside it says how many seconds a batch takes, and
    ``NTKPIPE_TEST_SLOWNESS`` how many times as many in this process.
    """

    def __init__(self, moods: str, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(NUM_INPUTS, width), nn.Linear(width, 2)
        self.moods = Path(moods)
        self.pace = self.moods.with_name("pace")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.pace.exists():
            time.sleep(float(self.pace.read_text()) * float(os.environ.get("NTKPIPE_TEST_SLOWNESS", "1")))
        if is_worker():
            lines = self.moods.read_text().splitlines() if self.moods.exists() else []
            for position, mood in (line.split() for line in lines):
                at = inputs[:, :1].detach() == float(position)
                if bool(at.any()):
                    inputs = torch.where(at, fall(mood, inputs), inputs)
        return self.second(torch.relu(self.first(inputs)))


def set_pace(folder: Path, seconds: float) -> None:
    """Let every batch take so long from now on, of the models whose file of moods is in a folder."""
    new = folder / "pace.new"
    new.write_text(str(seconds))
    new.rename(folder / "pace")


def build_moody(moods: str, width: int = 16) -> nn.Module:
    return Moody(moods, width)


class Greedy(nn.Module):
    """A small network that asks for half a GiB of address space for every sample of a batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(NUM_INPUTS, 16), nn.Linear(16, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if is_worker():
            torch.empty(len(inputs), SAMPLE_BYTES, dtype=torch.uint8)
        return self.second(torch.relu(self.first(inputs)))


def build_greedy(poor: str, samples: int = 2) -> nn.Module:
    """A greedy model; where the file ``poor`` exists, workers have address space for a few samples only."""
    if is_worker() and Path(poor).exists():
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + int((samples + 0.9) * SAMPLE_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return Greedy()


def config(**changes):
    """A job with a kernel of features, an exact one, a solution and an analysis, on two Ray workers."""
    document = {
        "name": "troubles",
        "data": {"splits": {"train": {"kind": "python", "target": "troubles:load"}}},
        "kernels": [{"kind": "pntk"}, {"kind": "ck"}],
        "solve": [{"kind": "cholesky", "name": "krr", "kernel": "ck", "ridge": 1.0}],
        "store": {"shard_rows": 1, "block_rows": 2},
        "resources": {"executor": "ray", "workers": 2},
    }
    return document | changes
