"""Samples for the golden network, as many as are asked for: more are the same ones with others behind them.

Also the import path ``growing:load`` of the configurations that tests run.
"""

from typing import Any

import torch

from ntkpipe.workers.sources.samples import Samples


def load(
    num: int,
    first: int = 0,
    flipped: int | None = None,
    moved: int | None = None,
    renamed: int | None = None,
    labelled: bool = True,
    extra_class: bool = False,
) -> Samples:
    """Return samples number ``first`` to ``first + num``; of one the label, the input or the id can be another."""
    number = torch.arange(first, first + num)
    inputs = torch.stack([(7 * number + 3) % 11 - 5, (5 * number * number + number) % 7 - 3], dim=1).double().float()
    labels = (number * number + number // 3) % 2
    ids = [f"n{value}" for value in number.tolist()]
    if flipped is not None:
        labels[flipped] = 1 - labels[flipped]
    if moved is not None:
        inputs[moved] += 1
    if renamed is not None:
        ids[renamed] += "-new"
    if extra_class:
        labels[-1] = 2
    return Samples(inputs, labels if labelled else None, tuple(ids))


def config(num: int = 5, num_test: int = 3, **changes: Any) -> dict[str, Any]:
    """Return a small configuration with features, exact and derived kernels, an iterative solver and an analysis."""
    document: dict[str, Any] = {
        "name": "growing",
        "model": {"target": "golden:build_model"},
        "data": {
            "splits": {
                "train": {"kind": "python", "target": "growing:load", "options": {"num": num}},
                "test": {"kind": "python", "target": "growing:load", "options": {"num": num_test, "first": 1000}},
            }
        },
        "kernels": [
            {"kind": "trntk0"},
            {"kind": "pntk", "name": "signs", "projection": {"kind": "rademacher", "dim": 8}},
            {"kind": "gaussian", "bandwidth": 4.0},
        ],
        "solve": [
            {"kind": "pcg", "name": "krr", "kernel": "trntk0", "ridge": 1.0, "rank": 1},
            {"kind": "cholesky", "name": "formula", "kernel": "gaussian", "ridge": 0.5},
        ],
        "analyses": [{"kind": "spectrum", "kernels": ["signs"]}],
        "store": {"shard_rows": 2, "block_rows": 2},
        "resources": {"executor": "serial", "checkpoint_seconds": 0.0},
    }
    return document | changes


def rich_config(**changes: Any) -> dict[str, Any]:
    """Return a configuration whose kernels, solutions and analyses depend on each other in many ways."""
    document = config(
        7,
        4,
        model={"target": "golden:build_member", "options": {"shift": 0.0}},
        kernels=[
            {"kind": "trntk0", "name": "trntk0", "layerwise": True},
            {"kind": "pntk", "name": "signs"},
            {"kind": "lpntk", "projection": {"kind": "none"}},
            {"kind": "ck", "name": "ck"},
            {
                "kind": "pntk",
                "name": "fisher",
                "projection": {"kind": "sjlt", "dim": 8},
                "precondition": {"kind": "fisher", "samples": 3},
            },
            {"kind": "gaussian", "bandwidth": 4.0},
            {"kind": "fourier_features", "name": "fourier", "dim": 8, "bandwidth": 4.0},
            {"kind": "sum", "name": "mixed", "terms": [{"of": "trntk0"}, {"of": "lpntk", "weight": 0.5}]},
            {"kind": "scaled", "of": "gaussian"},
            {"kind": "centred", "of": "mixed"},
            {"kind": "posterior", "of": "trntk0", "noise": 1.0, "given": ["n1", "n3"]},
        ],
        projection={"kind": "rademacher", "dim": 8},
        solve=[
            {"kind": "pcg", "name": "krr", "kernel": "trntk0", "ridge": 1.0, "rank": 1},
            {"kind": "tile-cholesky", "name": "tiles", "kernel": "gaussian", "ridge": 0.5, "tile_rows": 4},
            {"kind": "gram", "name": "path", "kernel": "fourier", "ridge": 0.5},
            {"kind": "cholesky", "name": "late", "kernel": "centred", "ridge": 5.0},
        ],
        analyses=[
            {"kind": "spectrum", "kernels": ["ck", "mixed"]},
            {"kind": "heatmap", "kernel": "signs"},
            {"kind": "fidelity"},
            {"kind": "student-t", "name": "student", "kernels": ["gaussian"]},
        ],
    )
    document["kernels"][0]["projection"] = {"kind": "none"}
    return document | changes
