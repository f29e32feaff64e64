"""Models and samples whose errors repeat all that the environment holds, as careless code does."""

import os

import torch
from golden import IDS, INPUTS, LABELS, MicroNetwork
from torch import nn

from ntkpipe.workers.sources.samples import Samples

# Workers on Ray inherit it from the driver, which imports this module first.
DRIVER = os.environ.setdefault("LEAKING_DRIVER", str(os.getpid()))
_built = 0


def everything() -> str:
    return f"cannot connect with {dict(os.environ)} {' '.join(os.environ.values())}"


class Leaking(nn.Module):
    """The golden network, which fails wherever it is not merely looked at before a run."""

    def __init__(self, in_worker: bool) -> None:
        super().__init__()
        self.network = MicroNetwork()
        self.in_worker = in_worker

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.in_worker:
            raise RuntimeError(everything())
        return self.network(inputs)


def build_model() -> nn.Module:
    global _built
    _built += 1
    return Leaking(in_worker=_built > 1 or str(os.getpid()) != DRIVER)


def build_nothing() -> nn.Module:
    raise RuntimeError(everything())


def load_nothing() -> Samples:
    raise KeyError(everything())


class Unreadable(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        raise OSError(everything())


def end_the_interpreter() -> Samples:
    raise SystemError(everything())


def load() -> Samples:
    return Samples(torch.tensor(INPUTS), torch.tensor(LABELS), IDS)
