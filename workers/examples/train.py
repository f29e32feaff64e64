"""The script that trained the networks of the presets.

    python -m ntkpipe.workers.examples.train digits --out digits_cnn.safetensors

Trained with PyTorch 2.13 on one CPU thread; the seed makes a repetition on the same machine give the same weights.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import nn

from ntkpipe.workers.examples import digits, mnist
from ntkpipe.workers.sources.samples import Samples


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


RECIPES = {"digits": Recipe(40, 32, 2e-3, 1e-3), "mnist": Recipe(8, 128, 2e-3, 1e-4)}
BUILDERS: dict[str, Callable[[], nn.Module]] = {"digits": digits.build_model, "mnist": mnist.build_model}
LOADERS: dict[str, Callable[[Literal["train", "test"]], Samples]] = {"digits": digits.load, "mnist": mnist.load}


def accuracy(model: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> float:
    """Return the share of images that the model classifies correctly."""
    with torch.no_grad():
        correct = sum(
            float((model(batch).argmax(1) == truth).sum())
            for batch, truth in zip(images.split(500), classes.split(500), strict=True)
        )
    return correct / len(images)


def train(name: str) -> nn.Module:
    """Train one of the example networks with AdamW and a cosine schedule, and report its test accuracy."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = BUILDERS[name]()
    data, test = LOADERS[name]("train"), LOADERS[name]("test")
    assert data.labels is not None
    assert test.labels is not None
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(data.inputs) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for epoch in range(recipe.epochs):
        for batch in torch.randperm(len(data.inputs)).split(recipe.batch_size):
            loss = nn.functional.cross_entropy(model(data.inputs[batch]), data.labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, test {accuracy(model, test.inputs, test.labels):.4f}")
    return model.eval()


def main() -> None:
    """Train and write a safetensors file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    model = train(arguments.name)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, arguments.out)


if __name__ == "__main__":
    main()
