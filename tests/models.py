"""Small models that exercise every route to the Jacobian, as data: name to (model, input shape)."""

import torch
from torch import nn
from torch.nn import functional


class Reused(nn.Module):
    """A layer called twice, a weight that is also used by a functional call, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 0.7))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.body(torch.tanh(self.body(x))))
        x = functional.linear(self.other(x), self.other.weight) * self.scale
        return self.head(x)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.sin(self.first(x)))


class Tokens(nn.Module):
    """A layer applied at several positions, a norm, and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.embed(x))).mean(1))


class TimeFirst(nn.Module):
    """A layer whose leading dimension is not the batch, which capturing must notice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(x.transpose(0, 1))).mean(0))


class Folded(nn.Module):
    """A layer that sees all positions of all samples as one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(x.reshape(-1, 3))).reshape(len(x), -1, 4).sum(1))


class RoundsBackward(torch.autograd.Function):
    """A custom function without a batching rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Custom(nn.Module):
    """A parameter behind a custom autograd function."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((3,), 1.5))
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(RoundsBackward.apply(x * self.gain))


class Head(nn.Module):
    """A Linear layer on as many features as it meets first."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.linear: nn.Linear | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.linear is None:
            self.linear = nn.Linear(x.shape[1], self.num_outputs)
        return self.linear(x)


class Hidden(nn.Module):
    """A second use of a weight that contributes nothing on the first samples, a scalar, and a layer without use."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x) + functional.linear(torch.relu(x - 1.0), self.body.weight) ** 2
        return self.head(torch.tanh(hidden) * self.gain)


class Keywords(nn.Module):
    """Layers that are called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(input=torch.sigmoid(self.body(input=x)))


def weight_normed() -> nn.Module:
    """Return a layer whose weight is computed from other parameters."""
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2))


def convolutions(**options: object) -> nn.Module:
    """Return two convolutions around an in-place activation."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **options),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, (2, 1), bias=False),
        nn.Flatten(),
        Head(3),
    )


IMAGES = (2, 7, 6)


def normed(norm: nn.Module) -> nn.Module:
    """Return a convolution with a normalisation whose scale and shift are not those of a fresh layer."""
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(-1, 1)
        for buffer in norm.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.SiLU(), nn.Flatten(), Head(2))


MODELS: dict[str, tuple[object, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)), (6,)),
    "mlp without biases": (lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 1)), (6,)),
    "conv": (convolutions, IMAGES),
    "conv with stride and padding": (lambda: convolutions(stride=(2, 1), padding=(0, 2)), IMAGES),
    "conv with dilation": (lambda: convolutions(dilation=2), IMAGES),
    "conv with same padding": (lambda: convolutions(padding="same", dilation=(1, 2)), IMAGES),
    "conv with even kernel and same padding": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, (2, 4), padding="same"), nn.Flatten(), Head(2)),
        IMAGES,
    ),
    "conv with valid padding": (lambda: convolutions(padding="valid"), IMAGES),
    "conv with groups": (lambda: convolutions(groups=2), IMAGES),
    "conv with circular padding": (lambda: convolutions(padding=1, padding_mode="circular"), IMAGES),
    "depthwise conv": (lambda: nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.ELU(), nn.Flatten(), Head(2)), IMAGES),
    "conv of one axis": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 3, stride=2, padding=2, dilation=2), nn.ELU(), nn.Flatten(), Head(2)),
        (2, 9),
    ),
    "conv of three axes": (
        lambda: nn.Sequential(nn.Conv3d(2, 3, (2, 1, 3), padding=(1, 0, 1)), nn.ELU(), nn.Flatten(), Head(2)),
        (2, 3, 4, 5),
    ),
    "batch norm in eval mode": (lambda: normed(nn.BatchNorm2d(4)), IMAGES),
    "group norm": (lambda: normed(nn.GroupNorm(2, 4)), IMAGES),
    "layer norm over all axes": (lambda: normed(nn.LayerNorm([4, 5, 4])), IMAGES),
    "layer norm without a shift": (lambda: normed(nn.LayerNorm(4, bias=False)), IMAGES),
    "rms norm": (lambda: normed(nn.RMSNorm(4)), IMAGES),
    "instance norm": (lambda: normed(nn.InstanceNorm2d(4, affine=True)), IMAGES),
    "dropout in eval mode": (lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3)), (6,)),
    "reused layer": (Reused, (4,)),
    "tied weights": (Tied, (5,)),
    "positions": (Tokens, (5, 3)),
    "leading dimension that is not the batch": (TimeFirst, (4, 3)),
    "positions folded into the batch": (Folded, (4, 3)),
    "hidden second use": (Hidden, (4,)),
    "squeezed output": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)), (4,)),
    "keyword arguments": (Keywords, (4,)),
    "weight normalisation": (weight_normed, (4,)),
    "custom autograd function": (Custom, (3,)),
}


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a model in eval mode with its input shape; the same weights every time."""
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    model(torch.randn(2, *shape))
    return model.eval(), shape
