"""Models whose activations are large, for tests of memory; also import paths of the configurations of those tests."""

import torch
from torch import nn

from ntkpipe.workers.sources.samples import Samples


def build_convolutional(width: int = 32) -> nn.Module:
    """Return a convolutional network on 3 x 48 x 48 images; most memory goes to activations."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, stride=2),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


def load_images(num: int = 256) -> Samples:
    """Return random images with classes."""
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randn(num, 3, 48, 48, generator=generator), torch.arange(num) % 10)


def build_wide(num_outputs: int = 200) -> nn.Module:
    """Return a network with more outputs than fit into one pass of a small worker."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 2048), nn.Tanh(), nn.Linear(2048, 2048), nn.Tanh(), nn.Linear(2048, num_outputs))


def load_vectors(num: int = 64) -> Samples:
    """Return random vectors with classes."""
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randn(num, 64, generator=generator), torch.arange(num) % 10)
