"""Small models that exercise every route to the Jacobian, as data: name to (model, input shape)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


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
    """Parameters behind a custom autograd function, one of them used by operations without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((3,), 1.5))
        self.bend = nn.Parameter(torch.full((3,), 0.3))
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(RoundsBackward.apply(x * self.gain + torch.sin(self.bend)))


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


@dataclass(frozen=True)
class Case:
    """A model with the samples it takes and the routes that its parameters must go."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    vocabulary: int = 0
    """Of integer samples; 0 for real ones."""
    routes: Mapping[str, str] = field(default_factory=dict)
    """Name pattern to route, with its layout; captured for parameters that no pattern matches."""

    def build(self) -> nn.Module:
        """Return the model in eval mode; the same weights every time."""
        torch.manual_seed(0)
        model = self.make()
        model(self.samples(2))
        return model.eval()

    def samples(self, num: int, seed: int = 1) -> torch.Tensor:
        """Return different samples."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return torch.randint(self.vocabulary, (num, *self.shape), generator=generator)
        return torch.randn(num, *self.shape, generator=generator)


class Calls(nn.Module):
    """What a function makes of modules and parameters, which are its arguments by name."""

    def __init__(self, function: Callable[..., torch.Tensor], **parts: nn.Module | torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.names = tuple(parts)
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, **{name: getattr(self, name) for name in self.names})


class Wrapped(nn.Module):
    """A layer with samples where another module puts them, a bend, and a head."""

    def __init__(self, layer: nn.Module, num_outputs: int = 2) -> None:
        super().__init__()
        self.layer = layer
        self.head = Head(num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.apply_layer(x)).flatten(1))

    def apply_layer(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class BatchSecond(Wrapped):
    """The layer sees (L, B, ...)."""

    def apply_layer(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class BatchFolded(Wrapped):
    """The layer sees (B L, ...)."""

    def apply_layer(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, (len(x), -1))


class TimeFolded(Wrapped):
    """The layer sees (L B, ...)."""

    def apply_layer(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, len(x))).transpose(0, 1)


def randomised(layer: nn.Module) -> nn.Module:
    """Return a layer whose parameters and running statistics are not those of a fresh one."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-1, 1)
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return layer


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape) / 2


def _wrapped(make: Callable[[], nn.Module], wrapper: type[Wrapped] = Wrapped) -> Callable[[], nn.Module]:
    return lambda: wrapper(make())


def _calls(function: Callable[..., torch.Tensor], **parts: Callable[[], nn.Module | torch.Tensor]):
    """Return the maker of a function of parts, with a head."""
    return lambda: Wrapped(randomised(Calls(function, **{name: part() for name, part in parts.items()})))


VMAP = {"layer.*": "vmap"}
LOOP = {"layer.*": "loop"}
FALLBACK = {"layer.*": "vmap or loop"}
SECOND = {"layer.*": "captured, batch-second"}
SHARED = {"layer.*": "captured, shared"}


def _linears() -> dict[str, Case]:
    def tokens(width: int = 3, **options: object) -> Callable[[], nn.Module]:
        return lambda: nn.Linear(width, 4, **options)

    def in_place(**options: object) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(nn.Linear(3, 4, **options), nn.ReLU(inplace=True), nn.Linear(4, 4))

    def masked(x: torch.Tensor, body: nn.Module) -> torch.Tensor:
        mask = x[..., :1] > -0.5
        return (torch.sin(body(x)) * mask).sum(1) / mask.sum(1).clamp_min(1)

    def masked_before(x: torch.Tensor, body: nn.Module) -> torch.Tensor:
        return torch.sin(body(x.masked_fill(x[..., :1] < 0, 0.0)))

    def keywords(x: torch.Tensor, body: nn.Module) -> torch.Tensor:
        return body(input=x)

    def functional_keywords(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.linear(bias=b, weight=w, input=x)

    def packed(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        (w1, w2), (b1, b2) = w.chunk(2), b.chunk(2)
        return functional.linear(torch.tanh(functional.linear(x, w2, b2)), w1, b1)

    def conv1d_of_hugging_face(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.addmm(b, x.view(-1, x.shape[-1]), w).view(*x.shape[:-1], -1)

    def constant_view(x: torch.Tensor, body: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            part = body.weight[:2]
        return functional.linear(body(x), part)

    def autoencoder(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return functional.linear(torch.tanh(functional.linear(x, w)), w.t())

    def views(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, w[:6].view(2, 3)) + functional.linear(x, w[6:].view(2, 3)) ** 2

    w34, b4 = partial(_random, 4, 3), partial(_random, 4)
    return {
        "linear": Case(_wrapped(tokens()), (3,)),
        "linear without a bias": Case(_wrapped(tokens(bias=False)), (3,)),
        "linear of three axes": Case(_wrapped(tokens()), (5, 3)),
        "linear of three axes without a bias": Case(_wrapped(tokens(bias=False)), (5, 3)),
        "linear of four axes": Case(_wrapped(tokens()), (2, 3, 3)),
        "linear before an in-place activation": Case(_wrapped(in_place()), (3,)),
        "linear of three axes before an in-place activation": Case(_wrapped(in_place()), (5, 3)),
        "linear of three axes without a bias before an in-place activation": Case(
            _wrapped(in_place(bias=False)), (5, 3)
        ),
        "linear of four axes before an in-place activation": Case(_wrapped(in_place()), (2, 3, 3)),
        "linear of three axes twice changed in place": Case(
            _calls(lambda x, body: body(x).mul_(2).relu_(), body=tokens()), (5, 3)
        ),
        "linear with time first": Case(_wrapped(tokens(), BatchSecond), (5, 3), routes=SECOND),
        "linear of four axes with time first": Case(_wrapped(tokens(), BatchSecond), (2, 3, 3), routes=SECOND),
        "linear with time first before an in-place activation": Case(
            _wrapped(in_place(), BatchSecond), (5, 3), routes=SECOND
        ),
        "linear of four axes with time first before an in-place activation": Case(
            _wrapped(in_place(), BatchSecond), (2, 3, 3), routes=SECOND
        ),
        "linear with positions in the batch": Case(_wrapped(tokens(), BatchFolded), (5, 3)),
        "linear with time first in the batch": Case(_wrapped(tokens(), TimeFolded), (5, 3), routes=SECOND),
        "linear with a mask": Case(_calls(masked, body=tokens()), (5, 3)),
        "linear with masked inputs": Case(_calls(masked_before, body=tokens()), (5, 3)),
        "linear by keyword": Case(_calls(keywords, body=tokens()), (5, 3)),
        "linear of parameters by keyword": Case(_calls(functional_keywords, w=w34, b=b4), (5, 3)),
        "linear tied to another": Case(lambda: nn.Sequential(Tied(), nn.Flatten(), Head(2)), (3, 5)),
        "linear reused": Case(_calls(lambda x, body: body(torch.tanh(body(x))), body=lambda: nn.Linear(3, 3)), (2, 3)),
        "linear reused on different numbers of positions": Case(
            _calls(lambda x, body: body(x).mean(1) + body(torch.tanh(x[:, 0])), body=tokens()), (4, 3)
        ),
        "linear on what all samples share": Case(
            _calls(lambda x, body, p: x + body(p), body=tokens(), p=partial(_random, 5, 3)),
            (5, 4),
            routes={"layer.p": "vmap"} | SHARED,
        ),
        "linear of part of a parameter": Case(_calls(packed, w=lambda: _random(6, 3), b=partial(_random, 6)), (5, 3)),
        "linear of views of a vector": Case(_calls(views, w=partial(_random, 12)), (5, 3)),
        "linear and its transpose": Case(_calls(autoencoder, w=w34), (5, 3)),
        "product with a matrix": Case(_calls(lambda x, w: x @ w, w=partial(_random, 3, 4)), (5, 3)),
        "product with a square matrix": Case(_calls(lambda x, w: x @ w, w=partial(_random, 3, 3)), (5, 3)),
        "product with a square matrix's transpose": Case(
            _calls(lambda x, w: x @ w.T, w=partial(_random, 3, 3)), (5, 3)
        ),
        "product with a matrix of one row": Case(_calls(lambda x, w: x @ w.T, w=partial(_random, 1, 3)), (5, 3)),
        "product with a matrix of one column": Case(
            _calls(lambda x, w: functional.linear(x, w.T), w=partial(_random, 3, 1)), (5, 3)
        ),
        "product with a vector": Case(_calls(lambda x, w: x @ w, w=partial(_random, 3)), (5, 3)),
        "product with a matrix and time first": Case(
            _wrapped(lambda: Calls(lambda x, w: x @ w, w=_random(3, 4)), BatchSecond), (5, 3), routes=SECOND
        ),
        "mm": Case(_calls(lambda x, w: x.mm(w), w=partial(_random, 3, 4)), (3,)),
        "Conv1D of Hugging Face": Case(_calls(conv1d_of_hugging_face, w=partial(_random, 3, 4), b=b4), (5, 3)),
        "scaled addmm": Case(
            _calls(lambda x, w, b: torch.addmm(b, x, w, alpha=2), w=partial(_random, 3, 4), b=b4), (3,), routes=VMAP
        ),
        "einsum": Case(_calls(lambda x, w: torch.einsum("bti,oi->bto", x, w), w=w34), (5, 3), routes=VMAP),
        "captured and by an unknown operation": Case(
            _calls(lambda x, body: body(x) + torch.einsum("bti,oi->bto", torch.tanh(x), body.weight), body=tokens()),
            (5, 3),
            routes={"layer.body.weight": "vmap"},
        ),
        "captured and inside of a computed weight": Case(
            _calls(
                lambda x, body: functional.linear(body(x), 2 * body.weight, body.bias), body=lambda: nn.Linear(3, 3)
            ),
            (5, 3),
            routes=VMAP,
        ),
        "captured and behind detach": Case(
            _calls(lambda x, body: functional.linear(body(x), body.weight.detach()), body=lambda: nn.Linear(3, 3)),
            (5, 3),
        ),
        "captured and in a view without gradient": Case(_calls(constant_view, body=lambda: nn.Linear(3, 3)), (5, 3)),
        "bilinear": Case(
            _calls(lambda x, body: body(x[:, 0], x[:, 1]), body=lambda: nn.Bilinear(3, 3, 4)), (2, 3), routes=VMAP
        ),
        "linear under torch.func.vmap": Case(
            _calls(lambda x, w: torch.func.vmap(lambda row: functional.linear(row, w))(x), w=w34), (5, 3), routes=VMAP
        ),
        "energy and forces": Case(Forces, (3,), routes={"body.weight": "loop", "last.*": "loop"}),
    }


class Forces(nn.Module):
    """Outputs that are themselves derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.last = nn.Linear(4, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.last(torch.tanh(self.body(x))).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def _convolutions() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    convs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    settings: dict[str, dict[str, object]] = {
        "": {},
        " without a bias": {"bias": False},
        " with stride and padding": {"stride": 2, "padding": 2},
        " with dilation": {"dilation": 2, "padding": 1},
        " with same padding": {"padding": "same", "dilation": 2},
        " with valid padding": {"padding": "valid"},
        " with groups": {"groups": 2},
        " of each channel": {"groups": 4, "padding": 1},
        " with circular padding": {"padding": 1, "padding_mode": "circular"},
        " with reflected padding": {"padding": 1, "padding_mode": "reflect"},
        " with replicated padding": {"padding": 1, "padding_mode": "replicate"},
        " with kernels of one": {"kernel_size": 1, "stride": 2},
    }
    transposed_settings: dict[str, dict[str, object]] = {
        "": {},
        " without a bias": {"bias": False},
        " with stride and padding": {"stride": 2, "padding": 1},
        " with output padding": {"stride": 2, "padding": 1, "output_padding": 1},
        " with output padding beyond the padding": {"stride": 3, "output_padding": 2},
        " with output padding beyond the stride": {"dilation": 3, "output_padding": 2, "padding": 1},
        " with groups": {"groups": 2, "stride": 2},
        " of each channel": {"groups": 4},
    }
    for num_axes in (1, 2, 3):
        shape = ((9,), (6, 5), (5, 4, 5))[num_axes - 1]
        small = ((4,), (3, 2), (2, 3, 2))[num_axes - 1]
        for name, options in settings.items():
            given = {"kernel_size": (3, 2, 3)[:num_axes]} | options
            if given.get("padding") == "same":
                given["kernel_size"] = (3,) * num_axes

            def layer(num_axes: int = num_axes, given: dict[str, object] = given) -> nn.Module:
                return convs[num_axes - 1](4, 4, **given)

            cases[f"convolution of {num_axes} axes{name}"] = Case(_wrapped(layer), (4, *shape))
        for name, options in transposed_settings.items():
            given = {"kernel_size": (3, 2, 3)[:num_axes]} | options

            def layer(num_axes: int = num_axes, given: dict[str, object] = given) -> nn.Module:
                return transposed[num_axes - 1](4, 4, **given)

            cases[f"transposed convolution of {num_axes} axes{name}"] = Case(_wrapped(layer), (4, *small))

    def functional_conv(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, w, bias=b, padding=(1, 0), stride=[2, 1])

    def in_place(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nn.Sequential(layer(), nn.ReLU(inplace=True))

    makers = {
        "convolution of 1 axes": (lambda: nn.Conv1d(2, 3, 2), (2, 5)),
        "convolution of 2 axes": (lambda: nn.Conv2d(2, 3, 2, groups=1), (2, 3, 4)),
        "convolution with groups": (lambda: nn.Conv2d(2, 4, 2, groups=2), (2, 3, 4)),
        "transposed convolution of 1 axes": (lambda: nn.ConvTranspose1d(2, 3, 2), (2, 5)),
    }
    for name, (make, shape) in makers.items():
        cases[f"{name} before an in-place activation"] = Case(_wrapped(in_place(make)), shape)
        cases[f"{name} with positions in the batch"] = Case(_wrapped(make, BatchFolded), (3, *shape))
        cases[f"{name} with time first in the batch"] = Case(_wrapped(make, TimeFolded), (3, *shape), routes=SECOND)
    return cases | {
        "convolution of parameters": Case(
            _calls(functional_conv, w=partial(_random, 3, 2, 2, 2), b=partial(_random, 3)), (2, 4, 4)
        ),
        "convolution reused": Case(
            _calls(lambda x, body: body(torch.tanh(body(x))), body=lambda: nn.Conv2d(2, 2, 2)), (2, 4, 4)
        ),
        "convolution with groups reused": Case(
            _calls(lambda x, body: body(torch.tanh(body(x))), body=lambda: nn.Conv1d(2, 2, 2, groups=2)), (2, 5)
        ),
        "transposed convolution reused": Case(
            _calls(lambda x, body: body(torch.tanh(body(x))), body=lambda: nn.ConvTranspose1d(2, 2, 2)), (2, 3)
        ),
        "convolution tied to a transposed one": Case(
            _calls(
                lambda x, w: functional.conv_transpose1d(torch.tanh(functional.conv1d(x, w)), w),
                w=lambda: _random(3, 2, 2),
            ),
            (2, 4),
        ),
        "convolution whose kernel is a linear layer elsewhere": Case(
            _calls(
                lambda x, w: functional.linear(functional.conv1d(x, w).mean(2), w[:, :, 0]), w=lambda: _random(3, 3, 1)
            ),
            (3, 4),
        ),
    }


def _embeddings() -> dict[str, Case]:
    def positions(ids: Callable[[int], torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda x, table: x + table(ids(x.shape[1]))

    def tied(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda x, table: product(torch.tanh(table(x)).mean(1), table.weight)

    def masked_mean(x: torch.Tensor, table: nn.Module) -> torch.Tensor:
        mask = (x != 0).unsqueeze(2)
        return (torch.tanh(table(x)) * mask).sum(1) / mask.sum(1).clamp_min(1)

    def table(**options: object) -> Callable[[], nn.Module]:
        return lambda: nn.Embedding(7, 4, **options)

    def after(x: torch.Tensor, table: nn.Module) -> torch.Tensor:
        return x.transpose(0, 1) + table(torch.arange(x.shape[1])).unsqueeze(1)

    def both_transposed(x: torch.Tensor, table: nn.Module) -> torch.Tensor:
        hidden = torch.tanh(table(x)).mean(1)
        return torch.tanh(hidden @ table.weight.T) @ table.weight

    return {
        "embedding": Case(_wrapped(table()), (5,), 7),
        "embedding of one id": Case(_wrapped(table()), (), 7),
        "embedding of two axes": Case(_wrapped(table()), (2, 3), 7),
        "embedding with padding": Case(_wrapped(table(padding_idx=2)), (5,), 7),
        "embedding with padding counted from the end": Case(_wrapped(table(padding_idx=-1)), (5,), 7),
        "embedding with time first": Case(_wrapped(table(), BatchSecond), (5,), 7, SECOND),
        "embedding with positions in the batch": Case(_wrapped(table(), BatchFolded), (5,), 7),
        "embedding with time first in the batch": Case(_wrapped(table(), TimeFolded), (5,), 7, SECOND),
        "embedding before an in-place activation": Case(
            _wrapped(lambda: nn.Sequential(nn.Embedding(7, 4), nn.ReLU(inplace=True))), (5,), 7
        ),
        "embedding of parameters": Case(
            _calls(lambda x, w: functional.embedding(x, w, padding_idx=1), w=partial(_random, 7, 4)), (5,), 7
        ),
        "embedding of parameters with padding counted from the end": Case(
            _calls(lambda x, w: functional.embedding(x, w, padding_idx=-2), w=partial(_random, 7, 4)), (5,), 7
        ),
        "embedding of some rows": Case(
            _calls(lambda x, w: functional.embedding(x, w[2:]), w=partial(_random, 9, 4)), (5,), 7
        ),
        "embedding by indexing": Case(_calls(lambda x, w: w[x], w=partial(_random, 7, 4)), (5,), 7),
        "embedding by indexing from the end": Case(_calls(lambda x, w: w[-1 - x], w=partial(_random, 7, 4)), (5,), 7),
        "embedding by indexing and a product": Case(
            _calls(lambda x, w: torch.tanh(w[x]).mean(1) @ w.T, w=partial(_random, 7, 4)), (5,), 7
        ),
        "bias table by indexing, for all samples": Case(
            _calls(
                lambda x, table: x + table[torch.tensor([[0, 1, 2], [1, 0, 2], [1, 1, 0]])].permute(2, 0, 1),
                table=partial(_random, 3, 4),
            ),
            (4, 3, 3),
            routes=VMAP,
        ),
        "embedding with a mask": Case(_calls(masked_mean, table=table(padding_idx=0)), (5,), 7),
        "embedding reused": Case(_calls(lambda x, table: table(x) * table(x.flip(1)), table=table()), (5,), 7),
        "embedding tied to a linear layer": Case(_calls(tied(functional.linear), table=table()), (5,), 7),
        "embedding tied to a product": Case(_calls(tied(lambda h, w: h @ w.T), table=table()), (5,), 7),
        "embedding tied to both sides of products": Case(_calls(both_transposed, table=table()), (5,), 7),
        "embedding tied to a linear layer at every position": Case(
            _calls(lambda x, table: functional.linear(torch.tanh(table(x)), table.weight), table=table()), (3,), 7
        ),
        "embedding with a largest norm": Case(_wrapped(table(max_norm=1.0)), (5,), 7, LOOP),
        "embedding with gradients scaled by frequency": Case(_wrapped(table(scale_grad_by_freq=True)), (5,), 7, VMAP),
        "embedding bag": Case(_wrapped(lambda: nn.EmbeddingBag(7, 4, mode="mean")), (5,), 7, VMAP),
        "position ids": Case(_calls(positions(torch.arange), table=lambda: nn.Embedding(5, 4)), (5, 4), routes=SHARED),
        "position ids of one row": Case(
            _calls(positions(lambda num: torch.arange(num)[None]), table=lambda: nn.Embedding(9, 4)),
            (5, 4),
            routes=SHARED,
        ),
        "position ids behind a layer": Case(
            _calls(
                lambda x, table, body: x + body(table(torch.arange(x.shape[1]))),
                table=lambda: nn.Embedding(5, 4),
                body=lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
            ),
            (5, 4),
            routes=SHARED,
        ),
        "position ids with time first": Case(
            _calls(lambda x, table: after(x, table).transpose(0, 1), table=table()), (5, 4), routes=VMAP
        ),
    }


def _normalisations() -> dict[str, Case]:
    channels: dict[str, Callable[[], nn.Module]] = {
        "batch norm": lambda: nn.BatchNorm2d(4),
        "group norm": lambda: nn.GroupNorm(2, 4),
        "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
        "instance norm with running statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    }
    others: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "batch norm of one axis": (lambda: nn.BatchNorm1d(4), (4, 3)),
        "batch norm of vectors": (lambda: nn.BatchNorm1d(4), (4,)),
        "batch norm of three axes": (lambda: nn.BatchNorm3d(2), (2, 2, 3, 2)),
        "group norm of vectors": (lambda: nn.GroupNorm(2, 4), (4,)),
        "instance norm of one axis": (lambda: nn.InstanceNorm1d(4, affine=True), (4, 3)),
        "instance norm of one axis with running statistics": (
            lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
            (4, 3),
        ),
        "layer norm": (lambda: nn.LayerNorm(4), (3, 4)),
        "layer norm of vectors": (lambda: nn.LayerNorm(4), (4,)),
        "layer norm without a shift": (lambda: nn.LayerNorm(4, bias=False), (3, 4)),
        "layer norm over two axes": (lambda: nn.LayerNorm((3, 4), eps=0.1), (2, 3, 4)),
        "rms norm": (lambda: nn.RMSNorm(4), (3, 4)),
        "rms norm over two axes": (lambda: nn.RMSNorm((3, 4), eps=0.1), (2, 3, 4)),
    }
    others |= {name: (make, (4, 3, 2)) for name, make in channels.items()}
    cases = {
        name: Case(_wrapped(lambda make=make: randomised(make())), shape) for name, (make, shape) in others.items()
    }
    for name in (*channels, "layer norm", "rms norm"):
        make, shape = others[name]
        # Positions behind (L B) could be taken for samples where their number happens to be B.
        folded = SECOND if name in channels else VMAP
        fresh = partial(lambda make: randomised(make()), make)
        behind = partial(lambda make: nn.Sequential(randomised(make()), nn.ReLU(inplace=True)), make)
        cases[f"{name} before an in-place activation"] = Case(_wrapped(behind), shape)
        cases[f"{name} with positions in the batch"] = Case(_wrapped(fresh, BatchFolded), (3, *shape))
        cases[f"{name} with time first in the batch"] = Case(_wrapped(fresh, TimeFolded), (3, *shape), routes=folded)
    for name in ("layer norm", "rms norm"):
        fresh = partial(lambda make: randomised(make()), others[name][0])
        cases[f"{name} with time first"] = Case(_wrapped(fresh, BatchSecond), (3, 4), routes=SECOND)

    def home_made(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))

    def of_gemma(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + weight)

    def of_parameters(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (4,), bias=b, weight=w, eps=0.1)

    return cases | {
        "layer norm of parameters": Case(_calls(of_parameters, w=partial(_random, 4), b=partial(_random, 4)), (3, 4)),
        "layer norm of vectors with time first in the batch": Case(
            _wrapped(lambda: randomised(nn.LayerNorm(4)), TimeFolded), (3, 4), routes=SECOND
        ),
        "layer norm reused": Case(
            _calls(lambda x, body: body(torch.tanh(body(x))), body=lambda: nn.LayerNorm(4)), (3, 4)
        ),
        "layer norm with one parameter for scale and shift": Case(
            _calls(lambda x, w: functional.layer_norm(x, (4,), w, w), w=partial(_random, 4)), (3, 4)
        ),
        "home-made rms norm": Case(_calls(home_made, weight=partial(_random, 4)), (3, 4)),
        "home-made rms norm with time first": Case(
            _wrapped(lambda: Calls(home_made, weight=_random(4)), BatchSecond), (3, 4), routes=SECOND
        ),
        "home-made rms norm with positions in the batch": Case(
            _wrapped(lambda: Calls(home_made, weight=_random(4)), BatchFolded), (3, 4)
        ),
        "home-made rms norm with time first in the batch": Case(
            _wrapped(lambda: Calls(home_made, weight=_random(4)), TimeFolded), (3, 4), routes=SECOND
        ),
        "rms norm of Gemma": Case(_calls(of_gemma, weight=partial(_random, 4)), (3, 4), routes=VMAP),
    }


def _elementwise() -> dict[str, Case]:
    def prompt(expand: Callable[..., torch.Tensor], shape: tuple[int, ...] = (1, 2, 4)) -> Callable[[], nn.Module]:
        return _calls(lambda x, p: torch.cat([expand(p, x), x], dim=1), p=partial(_random, *shape))

    def scaled(*shape: int) -> Callable[[], nn.Module]:
        return _calls(lambda x, p: x * p, p=partial(_random, *shape))

    def in_place(x: torch.Tensor, p: torch.Tensor, body: nn.Module) -> torch.Tensor:
        hidden = body(x)
        hidden += p
        return hidden.relu_()

    image = (4, 3, 2)
    return {
        "positions added": Case(_calls(lambda x, p: x + p, p=partial(_random, 1, 3, 4)), (3, 4)),
        "positions without a batch added": Case(_calls(lambda x, p: p + x, p=partial(_random, 3, 4)), (3, 4)),
        "some positions added": Case(_calls(lambda x, p: x + p[:, : x.shape[1]], p=partial(_random, 1, 5, 4)), (3, 4)),
        "some later positions added": Case(_calls(lambda x, p: x + p[2:5], p=partial(_random, 6, 4)), (3, 4)),
        "strided positions added": Case(_calls(lambda x, p: x + p[::2], p=partial(_random, 6, 4)), (3, 4), routes=VMAP),
        "positions added in place": Case(
            _calls(in_place, p=partial(_random, 1, 3, 4), body=lambda: nn.Linear(4, 4)), (3, 4)
        ),
        "positions added with time first": Case(
            _wrapped(lambda: Calls(lambda x, p: x + p, p=_random(3, 1, 4)), BatchSecond), (3, 4), routes=SECOND
        ),
        "positions with a new axis added with time first": Case(
            _wrapped(lambda: Calls(lambda x, p: x + p[: len(x), None], p=_random(5, 4)), BatchSecond),
            (3, 4),
            routes=SECOND,
        ),
        "positions added with a factor": Case(
            _calls(lambda x, p: torch.add(x, p, alpha=2), p=partial(_random, 3, 4)), (3, 4), routes=VMAP
        ),
        "positions added by keyword": Case(
            _calls(lambda x, p: torch.add(input=x, other=p), p=partial(_random, 3, 4)), (3, 4)
        ),
        "positions subtracted": Case(_calls(lambda x, p: x - p, p=partial(_random, 3, 4)), (3, 4), routes=VMAP),
        "layer scale": Case(scaled(4), (3, 4)),
        "layer scale of vectors": Case(scaled(4), (4,)),
        "layer scale of one number": Case(scaled(), (3, 4)),
        "layer scale of one entry": Case(scaled(1), (3, 4)),
        "layer scale of channels": Case(scaled(4, 1, 1), image),
        "layer scale of channels and the batch": Case(scaled(1, 4, 1, 1), image),
        "layer scale of channels by a view": Case(
            _calls(lambda x, p: x * p.view(1, -1, 1, 1), p=partial(_random, 4)), image
        ),
        "layer scale of channels by new axes": Case(
            _calls(lambda x, p: x * p[:, None, None], p=partial(_random, 4)), image
        ),
        "layer scale along a middle axis": Case(scaled(3, 1), image),
        "layer scale that broadens": Case(_calls(lambda x, p: x.unsqueeze(1) * p, p=partial(_random, 3, 4)), (4,)),
        "layer scale with time first": Case(
            _wrapped(lambda: Calls(lambda x, p: x * p, p=_random(4)), BatchSecond), (3, 4), routes=SECOND
        ),
        "scale and shift by one parameter": Case(_calls(lambda x, p: x * p + p, p=partial(_random, 4)), (3, 4)),
        "scale by the product of two parameters": Case(
            _calls(lambda x, p, q: x * (p * q), p=partial(_random, 4), q=partial(_random, 4)), (3, 4), routes=VMAP
        ),
        "class token": Case(prompt(lambda p, x: p.expand(len(x), -1, -1), (1, 1, 4)), (3, 4)),
        "class token from a vector": Case(prompt(lambda p, x: p.expand(len(x), 1, 4), (4,)), (3, 4)),
        "class token with sizes in one": Case(prompt(lambda p, x: p.expand((len(x), 2, 4))), (3, 4)),
        "class token expanded like another": Case(prompt(lambda p, x: p.expand_as(x[:, :2])), (3, 4)),
        "class token broadcast": Case(prompt(lambda p, x: torch.broadcast_to(p, (len(x), 2, 4))), (3, 4)),
        "class token repeated": Case(prompt(lambda p, x: p.repeat(len(x), 1, 1)), (3, 4)),
        "class token with a new axis": Case(prompt(lambda p, x: p[None].expand(len(x), -1, -1), (2, 4)), (3, 4)),
        "class token at many positions": Case(prompt(lambda p, x: p.expand(len(x), 3, -1), (1, 1, 4)), (3, 4)),
        "class token tiled": Case(prompt(lambda p, x: p.repeat(len(x), 2, 1)), (3, 4), routes=VMAP),
        "queries with time first": Case(
            _wrapped(
                lambda: Calls(lambda x, p: torch.cat([p.unsqueeze(1).repeat(1, x.shape[1], 1), x]), p=_random(2, 4)),
                BatchSecond,
            ),
            (3, 4),
            routes=SECOND,
        ),
        "parameter expanded over positions": Case(
            _calls(lambda x, p: x + p.expand(x.shape[1], 4), p=partial(_random, 1, 4)), (3, 4), routes=VMAP
        ),
        "prelu": Case(_wrapped(lambda: nn.PReLU(4)), image),
        "prelu of one number": Case(_wrapped(nn.PReLU), image),
        "prelu of vectors with time first in the batch": Case(
            _wrapped(lambda: nn.PReLU(4), TimeFolded), (3, 4), routes=SECOND
        ),
        "gelu and silu": Case(
            lambda: nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 2)), (4,)
        ),
    }


class Attention(nn.Module):
    """Attention, with masks made from the sample."""

    def __init__(
        self,
        *,
        key_width: int | None = None,
        value_width: int | None = None,
        mask: str = "",
        batch_first: bool = True,
        **options: object,
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(
            4, 2, kdim=key_width, vdim=value_width, batch_first=batch_first, **options
        )
        self.cross = key_width is not None
        self.widths = (key_width or 4, value_width or 4)
        self.mask = mask
        self.batch_first = batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query = x[..., :4]
        key, value = query, query
        if self.cross:
            key, value = x[:, 1:, : self.widths[0]].sin(), x[:, 1:, -self.widths[1] :].cos()
        options = {}
        if self.mask == "causal":
            size = x.shape[1]
            options["attn_mask"] = torch.triu(torch.ones(size, size, dtype=torch.bool), diagonal=1)
        if self.mask == "padding":
            hidden = key[..., 0] > 0
            hidden[:, 0] = False
            options["key_padding_mask"] = hidden
        if not self.batch_first:
            query, key, value = (values.transpose(0, 1) for values in (query, key, value))
        output, _ = self.attention(query, key, value, need_weights=False, **options)
        return output if self.batch_first else output.transpose(0, 1)


class Recurrent(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0][:, -1]


class Recurring(nn.Module):
    """A recurrence written out."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(3, 4)
        self.step = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(len(x), 4)
        for column in x.unbind(1):
            state = torch.tanh(self.read(column) + self.step(state))
        return state


def _modules() -> dict[str, Case]:
    def encoder(**options: object) -> Callable[[], nn.Module]:
        return lambda: nn.TransformerEncoderLayer(4, 2, 6, **options)

    def product_attention(x: torch.Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> torch.Tensor:
        query, key, value = (layer(x).unflatten(2, (2, 2)).transpose(1, 2) for layer in (q, k, v))
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)

    def checkpointed(x: torch.Tensor, one: nn.Module, other: nn.Module) -> torch.Tensor:
        return checkpoint(lambda values: torch.tanh(other(torch.relu(values))), one(x), use_reentrant=False)

    def norm(kind: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
        return _wrapped(lambda: kind(nn.Linear(4, 4)))

    linear = partial(nn.Linear, 4, 4)
    second = {"layer.attention.*": "captured, batch-second"}
    inside = {"layer.self_attn.*": "captured, batch-second"}
    attention: dict[str, dict[str, object]] = {
        "": {},
        " without a bias": {"bias": False},
        " with other keys and values": {"key_width": 4, "value_width": 4},
        " with keys and values of other widths": {"key_width": 3, "value_width": 2},
        " with a causal mask": {"mask": "causal"},
        " with padding": {"mask": "padding"},
        " with padding of other keys": {"mask": "padding", "key_width": 3, "value_width": 3},
        " with added keys": {"add_bias_kv": True},
        " with a zero key": {"add_zero_attn": True},
    }
    cases = {
        f"attention{name}{' and time first' if not first else ''}": Case(
            _wrapped(partial(Attention, batch_first=first, **options)), (5, 4), routes=second
        )
        for name, options in attention.items()
        for first in (True, False)
    }
    for norm_first in (False, True):
        order = "norm first" if norm_first else "norm last"
        cases[f"transformer layer, {order}"] = Case(
            _wrapped(encoder(norm_first=norm_first, batch_first=True)), (5, 4), routes=inside
        )
        cases[f"transformer layer, {order} and time first"] = Case(
            _wrapped(encoder(norm_first=norm_first), BatchSecond), (5, 4), routes=SECOND
        )
    return cases | {
        "scaled dot product attention": Case(_calls(product_attention, q=linear, k=linear, v=linear), (5, 4)),
        "lstm": Case(_wrapped(lambda: Recurrent(nn.LSTM(3, 4, batch_first=True))), (5, 3), routes=FALLBACK),
        "gru": Case(_wrapped(lambda: Recurrent(nn.GRU(3, 4, batch_first=True))), (5, 3), routes=LOOP),
        "recurrence": Case(_wrapped(Recurring), (5, 3)),
        "checkpoints": Case(_calls(checkpointed, one=linear, other=linear), (5, 4)),
        "weight norm": Case(
            norm(nn.utils.parametrizations.weight_norm), (4,), routes={"*.original*": "vmap", "layer.bias": "vmap"}
        ),
        "spectral norm": Case(
            norm(nn.utils.parametrizations.spectral_norm), (4,), routes={"*.original": "vmap", "layer.bias": "vmap"}
        ),
        "custom autograd function between layers": Case(
            _calls(lambda x, one, other: other(RoundsBackward.apply(one(x))), one=linear, other=linear), (5, 4)
        ),
    }


CASES: dict[str, Case] = _linears() | _convolutions() | _embeddings() | _normalisations() | _elementwise() | _modules()
"""Every operation in every way that it may be used."""
