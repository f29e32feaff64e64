"""Models and samples of the runs that the explorer shows, and the runs themselves."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from watching import Notes

import ntkpipe
from ntkpipe.configs.errors import RunStoppedError
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.workers.sources.samples import Samples

HOSTILE = "<img src=x onerror=document.title='owned'>"
"""As an id, a label in a message, and the name of a run's folder."""

NUM_TRAIN = 48
NUM_TEST = 12
NUM_CLASSES = 4
NUM_MANY = 60_000


def build_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, NUM_CLASSES))


def build_small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def load(split: str) -> Samples:
    """Pictures of four kinds of stripes to train on; the others are said in words."""
    number = NUM_TRAIN if split == "train" else NUM_TEST
    generator = torch.Generator().manual_seed(1 if split == "train" else 2)
    labels = torch.arange(number) % NUM_CLASSES
    images = torch.rand(number, 1, 8, 8, generator=generator) * 0.3
    for position, label in enumerate(labels.tolist()):
        images[position, 0, 2 * label : 2 * label + 2, :] += 0.7
    ids = [f"{split}-{position:03d}" for position in range(number)]
    if split == "train":
        ids[1] = HOSTILE
        return Samples(images, labels, tuple(ids))
    texts = tuple(f"Stripes of kind {label}. {HOSTILE}" for label in labels.tolist())
    return Samples(images, labels, tuple(ids), texts)


def load_values(split: str) -> Samples:
    """The same pictures with a real target for each output."""
    samples = load(split)
    return Samples(samples.inputs, torch.eye(NUM_CLASSES)[samples.labels] - 0.25, samples.ids)


def load_many() -> Samples:
    generator = torch.Generator().manual_seed(3)
    return Samples(torch.rand(NUM_MANY, 2, generator=generator), torch.arange(NUM_MANY) % 3)


def config(**changes: Any) -> dict[str, Any]:
    """Return the configuration of a run that has something on every page."""
    splits = {
        name: {"kind": "python", "target": "explorer.material:load", "options": {"split": name}}
        for name in ("train", "test")
    }
    document: dict[str, Any] = {
        "name": "stripes",
        "model": {"target": "explorer.material:build_model"},
        "data": {"splits": splits},
        "kernels": [
            {"kind": "trntk", "projection": {"kind": "rademacher", "dim": 64}},
            {"kind": "pntk", "layerwise": True},
            {"kind": "ck"},
        ],
        "solve": [
            {"kind": "cholesky", "name": "trntk-ridge", "kernel": "trntk", "ridge": 0.01},
            {"kind": "cholesky", "name": "ck-ridge", "kernel": "ck", "ridge": 0.01},
        ],
        "analyses": [
            {"kind": "spectrum", "name": "spectrum"},
            {"kind": "heatmap", "name": "heatmap", "kernel": "trntk"},
        ],
        "store": {"shard_rows": 16, "block_rows": 16},
        "resources": {"executor": "serial"},
    }
    return document | changes


def values_config() -> dict[str, Any]:
    """Return the configuration of a run of two members with real targets."""
    splits = {
        name: {"kind": "python", "target": "explorer.material:load_values", "options": {"split": name}}
        for name in ("train", "test")
    }
    return config(
        name="values",
        model={
            "target": "explorer.material:build_model",
            "members": {"early": {"options": {"seed": 1}}, "late": {"options": {"seed": 2}}},
        },
        data={"splits": splits},
        kernels=[{"kind": "full"}, {"kind": "signgd_asym"}],
        solve=[{"kind": "cholesky", "name": "real", "kernel": "full@late", "ridge": 0.01, "targets": "values"}],
        analyses=[],
    )


class Stopping(Notes):
    """Progress that asks the driver to stop after so many tasks of the kernel stage."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.stop = StopRequest()
        self._left = number

    def task(self, name: str, num_bytes: int) -> None:
        self._left -= name == "kernel"
        if self._left <= 0:
            self.stop.request()


def interrupted(document: dict[str, Any], out: Path, number: int) -> None:
    """Compute so many blocks of a run."""
    watcher = Stopping(number)
    try:
        ntkpipe.run(document, out, progress=watcher, stop=watcher.stop)
    except RunStoppedError:
        return
    raise AssertionError("the run was expected to stop")


def make_runs(root: Path) -> None:
    """Make runs of every kind.

    A finished one, a kept prediction, one of two members with real targets, one that stopped, one of 60,000 samples with a
    few blocks, a damaged one and an unreadable one.
    """
    ntkpipe.run(config(), root / "stripes")
    ntkpipe.predict(root / "stripes", load("test").inputs[:5], "ck-ridge", keep=root / "kept")
    ntkpipe.run(values_config(), root / "values")
    interrupted(config(name="half"), root / "half", 3)
    many = {
        "name": "many",
        "model": {"target": "explorer.material:build_small"},
        "data": {"splits": {"train": {"kind": "python", "target": "explorer.material:load_many"}}},
        "kernels": [{"kind": "pntk"}],
        "store": {"shard_rows": 8192, "block_rows": 1024},
        "resources": {"executor": "serial"},
    }
    interrupted(many, root / "many", 4)
    damaged = shutil.copytree(root / "stripes", root / "damaged")
    for file in (damaged / "data.zarr/kernel/ck").rglob("[0-9]*"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 0xFF
            file.write_bytes(bytes(data))
    hostile = root / HOSTILE
    hostile.mkdir()
    (hostile / "run.json").write_text(json.dumps({"name": HOSTILE}))
