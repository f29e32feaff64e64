"""Kernels of fully connected networks whose hidden layers are infinitely wide."""

import re
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.kernels.base import KernelSection

ActivationName = Literal[
    "abs",
    "cosine",
    "erf",
    "gelu",
    "identity",
    "leaky_relu",
    "mish",
    "relu",
    "sigmoid",
    "silu",
    "sine",
    "softplus",
    "tanh",
]
ACTIVATION_NAMES: Final[tuple[str, ...]] = get_args(ActivationName)
CLOSED_FORM_ACTIVATIONS: Final = ("abs", "cosine", "erf", "gelu", "identity", "leaky_relu", "relu", "sine")
"""Those whose expectations are formulas; all others are expanded into Hermite polynomials."""
IMPORT_PATH: Final = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"


def _activation(name: str) -> str:
    if name not in ACTIVATION_NAMES and not re.fullmatch(IMPORT_PATH, name):
        raise ValueError(unknown_name("activation", name, (*ACTIVATION_NAMES, "package.module:callable")))
    return name


class _InfiniteWidthSection(KernelSection):
    """A network of ``depth`` hidden layers h_l = s(z_l) with z_{l+1} = W_l h_l + b_l, and its output z_{depth+1}.

    At initialisation the weights have variance ``weight_variance`` / fan-in and the biases ``bias_variance``. The
    units' covariances S and, with D[S] = E[s(u) s(v)] and D'[S] = E[s'(u) s'(v)] for (u, v) ~ N(0, S), their recursion:

        S_0 = weight_variance q(x, y) + bias_variance,  S_{l+1} = weight_variance D[S_l] + bias_variance.
    """

    depth: int = Field(1, ge=1, le=1000)
    """Hidden layers."""
    activation: Annotated[str, AfterValidator(_activation)] = "relu"
    """s, by name or as ``package.module:callable``, a function of tensors that works entry by entry and that autograd
    can differentiate. ``abs``, ``cosine``, ``erf``, ``gelu`` (exact), ``identity``, ``leaky_relu``, ``relu`` and
    ``sine`` have closed forms; all others are expanded into Hermite polynomials."""
    slope: float = Field(0.01, ge=-1, le=1)
    """Of ``leaky_relu`` below zero."""
    frequency: float = Field(1.0, gt=0)
    """Of ``sine`` and ``cosine``: s(z) = sin(frequency z)."""
    weight_variance: float = Field(1.0, gt=0)
    """Times fan-in; 2 keeps the size of activations of a ReLU network."""
    bias_variance: float | None = Field(None, ge=0)
    """None: no biases. 0: biases that start at zero, which makes a difference only if they are trained directly."""
    inner_product: Literal["mean", "sum", "cosine"] = "mean"
    """q(x, y). ``mean``: <x, y> / d, as if inputs were a layer of d units. ``sum``: <x, y>. ``cosine``: of normalised
    vectors, 0 where one is zero."""
    normalise: bool = False
    """Divide s by sqrt(E[s(z)^2]) for z ~ N(0, 1): the ReLU is then multiplied by sqrt(2)."""
    tolerance: float = Field(1e-5, ge=1e-12, le=0.1)
    """Of activations without a closed form: how large an estimated error may be, relative to a layer's variances. It
    is usually far smaller; activations with kinks and large variances are refused unless this is raised."""

    @model_validator(mode="after")
    def _options_fit_the_activation(self) -> "_InfiniteWidthSection":
        if self.departs("slope") and self.activation != "leaky_relu":
            raise ValueError(f"slope is an option of leaky_relu; activation {self.activation!r} has none")
        if self.departs("frequency") and self.activation not in ("sine", "cosine"):
            raise ValueError(f"frequency is an option of sine and cosine; activation {self.activation!r} has none")
        if self.departs("tolerance") and self.activation in CLOSED_FORM_ACTIVATIONS:
            raise ValueError(
                f"activation {self.activation!r} has a closed form, which needs no tolerance; leave it out"
            )
        return self


class NtkConfig(_InfiniteWidthSection):
    """The neural tangent kernel of an infinitely wide network with one output.

    With the recursion of S, D and D' for the layers' covariances, T_{l+1} = g D[S_l] + g_b + weight_variance D'[S_l] T_l
    and the kernel is T_depth, started from T_0 = g_0 q(x, y) + g_b:

    ===============================  ======================  =======================  ====================
    parameterisation                 g                       g_0                      g_b (with biases)
    ===============================  ======================  =======================  ====================
    ``ntk``                          weight_variance         weight_variance          bias_variance
    ``standard``, ``width`` n        n                       d for ``mean``, else 1   1
    ``standard``, per unit of width  1                       0                        0
    ===============================  ======================  =======================  ====================

    ``ntk``: standard normal parameters, multiplied by sqrt(weight_variance / fan-in) and sqrt(bias_variance).
    ``standard``: weights and biases that have these sizes are trained themselves; a layer's part of the kernel then
    grows with its fan-in. A zero vector has, without biases, a zero row if s(0) = 0. Jacot, Gabriel, Hongler, 2018;
    for the standard parameterisation Sohl-Dickstein, Novak, Schoenholz, Lee, 2020.
    """

    kind: Literal["ntk"] = "ntk"
    parameterisation: Literal["ntk", "standard"] = "ntk"
    """What is trained: see the class."""
    width: int | None = Field(None, ge=1)
    """Of ``standard``: n, the units of every hidden layer of the network whose kernel is wanted (to first order in n).
    None: the kernel divided by n, for n to infinity, in which inputs' weights and biases have no part."""

    @model_validator(mode="after")
    def _width_belongs_to_standard(self) -> "NtkConfig":
        if self.parameterisation == "ntk" and self.width is not None:
            raise ValueError(
                f"width = {self.width}: the kernel of parameterisation 'ntk' does not grow with the width; "
                "drop width, or use parameterisation 'standard'"
            )
        return self


class NngpLimitConfig(_InfiniteWidthSection):
    """The covariance S_depth of the outputs of an infinitely wide network at initialisation.

    It is the kernel of training the last layer only, and that of the Gaussian process which the network is before
    training. A zero vector has, without biases, a zero row if s(0) = 0. Lee, Bahri, Novak, Schoenholz, Pennington,
    Sohl-Dickstein, 2018.
    """

    kind: Literal["nngp_limit"] = "nngp_limit"


InfiniteWidthConfig = NtkConfig | NngpLimitConfig
