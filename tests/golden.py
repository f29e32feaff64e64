"""The golden micro-network: small enough to compute every kernel by hand. Values are exact.

Also the import path ``golden:build_model`` and ``golden:load`` of the configurations that tests run.
"""

import itertools
from typing import Any

import torch
from torch import nn

from ntkpipe.workers.sources.samples import Samples

INPUTS = [[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [-1.0, 0.0]]
LABELS = [0, 1, 1, 0]
IDS = ("x0", "x1", "x2", "x3")
LOADS = itertools.count()
OUTPUTS = [[3.0, -1.0], [9.0, -4.0], [4.0, -2.0], [0.0, 0.0]]

TRNTK0 = [[18, 30, 11, 2], [30, 72, 38, 2], [11, 38, 60, 2], [2, 2, 2, 2]]
TRNTK0_COMPONENTS = {
    "fc1.weight": [[6, 12, 0, 0], [12, 30, 15, 0], [0, 15, 45, 0], [0, 0, 0, 0]],
    "fc1.bias": [[6, 6, 5, 0], [6, 6, 5, 0], [5, 5, 5, 0], [0, 0, 0, 0]],
    "fc2.weight": [[4, 10, 4, 0], [10, 34, 16, 0], [4, 16, 8, 0], [0, 0, 0, 0]],
    "fc2.bias": [[2, 2, 2, 2]] * 4,
}
TRNTK_UPPER = {
    (0, 1): 0.83333333,
    (0, 2): 0.33471934,
    (0, 3): 0.33333333,
    (1, 2): 0.57815159,
    (1, 3): 0.16666667,
    (2, 3): 0.18257419,
}
PNTK = [[10, 18, 7, 2], [18, 48, 22, 2], [7, 22, 20, 2], [2, 2, 2, 2]]
CK = [[2, 5, 2, 0], [5, 17, 8, 0], [2, 8, 4, 0], [0, 0, 0, 0]]
PNTK_UPPER = {
    (0, 1): 0.82158384,
    (0, 2): 0.49497475,
    (0, 3): 0.44721360,
    (1, 2): 0.71004695,
    (1, 3): 0.20412415,
    (2, 3): 0.31622777,
}
LPNTK = [[13, -21, -7.5, 1], [-21, 48, 27, -1], [-7.5, 27, 50, -1], [1, -1, -1, 1]]
EM = [[12, 36, 13, -4], [36, 114, 49, -13], [13, 49, 33, -3], [-4, -13, -3, 10]]
"""Of the outputs of fc1 and fc2 only."""
SIGNGD = [[10, 10, 5, 2], [10, 12, 6, 2], [5, 6, 6, 2], [2, 2, 2, 2]]
SIGNGD_ASYM = [[10, 18, 7, 2], [10, 20, 10, 2], [5, 12, 10, 2], [2, 2, 2, 2]]
LOSS_DIAGONAL = [0.00841110, 95.99956602, 99.50608676, 0.5]
FULL_EIGENVALUES = [
    0.04607979,
    0.82085090,
    0.95238870,
    1.56359048,
    2.92743332,
    25.26636421,
    30.76569163,
    89.65760098,
]
KRR_ALPHA = [-0.16112626, 0.08760223, 0.00020344, -0.28445294]
"""(trNTK0 + I) alpha = (-1, 1, 1, -1)."""


class MicroNetwork(nn.Module):
    """Linear(2, 2) - ReLU - Linear(2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, 2)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(2, 2)
        with torch.no_grad():
            self.fc1.weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
            self.fc1.bias.copy_(torch.tensor([0.0, -1.0]))
            self.fc2.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
            self.fc2.bias.zero_()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.relu(self.fc1(inputs)))


def build_model() -> nn.Module:
    return MicroNetwork()


def build_wide(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))


def load(nan_at: int | None = None, ids: list[str] | None = None, label_shift: int = 0, shift: float = 0.0) -> Samples:
    inputs = torch.tensor(INPUTS) + shift
    if nan_at is not None:
        inputs[nan_at, 0] = float("nan")
    return Samples(inputs, torch.tensor(LABELS) + label_shift, tuple(ids) if ids else IDS)


def config(**changes: Any) -> dict[str, Any]:
    """Return a configuration with every kernel, layer components and both solvers; sections can be replaced."""
    document: dict[str, Any] = {
        "name": "golden",
        "model": {"target": "golden:build_model"},
        "data": {
            "splits": {
                "train": {"kind": "python", "target": "golden:load"},
                "test": {"kind": "python", "target": "golden:load"},
            }
        },
        "kernels": [
            {"kind": "trntk0", "layerwise": True},
            {"kind": "trntk", "layerwise": True},
            {"kind": "pntk", "layerwise": True},
            {"kind": "ck"},
            {"kind": "pntk", "name": "pntk-sjlt", "projection": {"kind": "sjlt", "dim": 16}},
            {
                "kind": "trntk0",
                "name": "trntk0-signs",
                "projection": {"kind": "rademacher", "dim": 64},
                "layerwise": True,
            },
        ],
        "solve": [
            {"kind": "cholesky", "name": "krr", "kernel": "trntk0", "ridge": 1.0},
            {"kind": "eigenpro2", "name": "sgd", "kernel": "trntk", "ridge": 1.0, "epochs": 200},
        ],
        "store": {"shard_rows": 2, "block_rows": 2},
        "resources": {"executor": "serial"},
    }
    return document | changes


def build_member(shift: float = 0.0) -> nn.Module:
    """The micro-network with shifted weights, as another checkpoint of it would have."""
    model = MicroNetwork()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += shift
    return model


class Overflowing(nn.Module):
    """The micro-network, with outputs that overflow float32 for inputs above 2.5."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MicroNetwork()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs) * torch.exp(100 * torch.relu(inputs[:, 1:] - 2))


def build_overflowing_model() -> nn.Module:
    return Overflowing()


def build_nothing() -> nn.Module:
    return nn.Linear(2, 1 // 0)


def build_unseeded_model() -> nn.Module:
    """A network that is another one in every process."""
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def load_relabelled() -> Samples:
    """Samples whose labels change places every time."""
    return Samples(torch.tensor(INPUTS), torch.tensor(LABELS).roll(next(LOADS)), IDS)


def load_random() -> Samples:
    """Samples that are others every time."""
    return Samples(torch.rand(4, 2), torch.tensor(LABELS), IDS)


class Augmented(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A data set whose items are others every time they are read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        return torch.tensor(INPUTS[position]) + 0.1 * torch.rand(2), LABELS[position]


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The golden samples as a map-style data set of (input, label) pairs."""

    def __init__(self, broken_at: int | None = None) -> None:
        self.broken_at = broken_at

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        if position == self.broken_at:
            raise OSError("img_2.png is missing")
        return torch.tensor(INPUTS[position]), LABELS[position]


def load_anything(what: str) -> object:
    """Things that a callable may return by mistake."""
    inputs = torch.tensor(INPUTS)
    return {
        "pair": (inputs, torch.tensor(LABELS)),
        "dict": {"x": inputs},
        "text labels": Samples(inputs, ["a", "b", "b", "a"]),  # type: ignore[arg-type]
        "text ids": Samples(inputs, None, "abcd"),  # type: ignore[arg-type]
        "list of texts": ["a", "b"],
        "ragged": [torch.ones(2), torch.ones(3)],
    }[what]
