import itertools
import math

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.special import erf

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.dot_products import ArcCosineConfig
from ntkpipe.configs.kernels.infinite_width import NngpLimitConfig, NtkConfig
from ntkpipe.workers.kernels.closed_form.dot_products import ArcCosineKernel
from ntkpipe.workers.kernels.closed_form.infinite_width import NngpLimitKernel, NtkKernel

UNIT = {"inner_product": "cosine", "normalise": True}
"""Unit vectors, no 1 / d, ReLU times sqrt(2)."""

UNIT_NTK = {
    1: {-1.0: 0.0, -0.5: -0.05766889, 0.0: 0.31830989, 0.5: 0.94233111, 1.0: 2.0},
    2: {-1.0: 0.31830989, -0.5: 0.34386225, 0.0: 0.68570864, 0.5: 1.35147956, 1.0: 3.0},
    3: {-1.0: 0.68570864, -0.5: 0.74224932, 0.0: 1.06038811, 0.5: 1.73784468, 1.0: 4.0},
    5: {-1.0: 1.43039050, -0.5: 1.50710680, 0.0: 1.79219597, 0.5: 2.46289313, 1.0: 6.0},
}

SMOOTH = {
    "erf": (erf, lambda z: 2 / np.sqrt(np.pi) * np.exp(-(z**2))),
    "gelu": (
        lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
        lambda z: (1 + erf(z / np.sqrt(2))) / 2 + z * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi),
    ),
    "identity": (lambda z: z, np.ones_like),
    "sine": (lambda z: np.sin(1.7 * z), lambda z: 1.7 * np.cos(1.7 * z)),
    "cosine": (lambda z: np.cos(1.7 * z), lambda z: -1.7 * np.sin(1.7 * z)),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "sigmoid": (lambda z: 1 / (1 + np.exp(-z)), lambda z: 1 / (2 + np.exp(z) + np.exp(-z))),
    "silu": (
        lambda z: z / (1 + np.exp(-z)),
        lambda z: 1 / (1 + np.exp(-z)) + z / (2 + np.exp(z) + np.exp(-z)),
    ),
    "softplus": (lambda z: np.logaddexp(z, 0), lambda z: 1 / (1 + np.exp(-z))),
    "torch:exp": (np.exp, np.exp),
    "torch:arctan": (np.arctan, lambda z: 1 / (1 + z**2)),
}
CLOSED = ("erf", "gelu", "identity", "sine", "cosine")
COVARIANCES = [(1, 0.5, 1), (0.9, 0.3, 0.4), (0.6, -0.45, 0.5), (1e-3, 5e-4, 0.8), (0.7, 0.0, 0.7), (0.5, 0.4999, 0.5)]


def options_of(activation):
    return {"activation": activation} | ({"frequency": 1.7} if activation in ("sine", "cosine") else {})


def vectors(num, dim, seed=0):
    return torch.randn(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair_of(a, b, c):
    """Two vectors of the plane with the inner products a, b and c."""
    return torch.tensor([[math.sqrt(a), 0], [b / math.sqrt(a), math.sqrt(c - b * b / a)]], dtype=torch.float64)


def duals(a, b, c, **options):
    """E[s s] and E[s' s'], read off the kernels of one hidden layer."""
    x = pair_of(a, b, c)
    value = NngpLimitKernel(NngpLimitConfig(inner_product="sum", **options)).block(x[:1], x[1:])
    tangent = NtkKernel(NtkConfig(inner_product="sum", **options)).block(x[:1], x[1:])
    return float(value), float(tangent - value) / b if b else None


def quadrature(a, b, c, function, num=200):
    """E[s s] by a product of Gauss-Hermite rules in the plane."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    weights = weights / np.sqrt(2 * np.pi)
    first = np.sqrt(a) * nodes[:, None]
    second = b / np.sqrt(a) * nodes[:, None] + np.sqrt(c - b * b / a) * nodes[None, :]
    return float(weights @ (function(first) * function(second)) @ weights)


def on_a_circle(function, angle):
    """The mean of a product of functions of two cosines over a turn, cut where either cosine changes its sign."""
    cuts = sorted(
        (cut % (2 * math.pi)) for cut in (math.pi / 2, -math.pi / 2, angle + math.pi / 2, angle - math.pi / 2)
    )
    edges = [0, *cuts, 2 * math.pi]
    pieces = [
        quad(lambda turn: function(math.cos(turn)) * function(math.cos(turn - angle)), low, high)[0]
        for low, high in itertools.pairwise(edges)
    ]
    return math.fsum(pieces) / (2 * math.pi)


class Contract(KernelContract):
    kernel = None
    tolerance = 1e-11

    def samples(self):
        x = vectors(8, 10)
        x[2] = -x[1]
        x[3] = x[5] + 1e-9
        x[6] = 0
        x[-1] = x[0]
        return x

    def block(self, x, x2=None):
        return self.kernel.block(x, x2)

    def diagonal(self, x):
        return self.kernel.diagonal(x)


class TestNtkOfRelu(Contract):
    kernel = NtkKernel(NtkConfig(depth=3, weight_variance=2.0))


class TestNtkOfReluWithBiases(Contract):
    kernel = NtkKernel(NtkConfig(depth=4, weight_variance=1.5, bias_variance=0.3))


class TestNtkOfLeakyReluInStandardParameterisation(Contract):
    kernel = NtkKernel(
        NtkConfig(depth=2, activation="leaky_relu", slope=0.2, parameterisation="standard", width=64, bias_variance=0.1)
    )


class TestNtkOfAbsolutesOnTheSphere(Contract):
    kernel = NtkKernel(NtkConfig(depth=3, activation="abs", **UNIT))


class TestNtkOfErf(Contract):
    kernel = NtkKernel(NtkConfig(depth=3, activation="erf", bias_variance=0.1))


class TestNtkOfGelu(Contract):
    kernel = NtkKernel(NtkConfig(depth=3, activation="gelu", weight_variance=2.0))


class TestNtkOfSine(Contract):
    kernel = NtkKernel(NtkConfig(depth=2, activation="sine", frequency=5.0))


class TestNtkOfTanh(Contract):
    kernel = NtkKernel(NtkConfig(depth=3, activation="tanh", weight_variance=1.2, bias_variance=0.05))


class TestNtkOfSoftplus(Contract):
    kernel = NtkKernel(NtkConfig(depth=2, activation="softplus"))


class TestNtkOfAnImportedActivation(Contract):
    kernel = NtkKernel(NtkConfig(depth=2, activation="torch:arctan"))


class TestNtkOfAKink(Contract):
    kernel = NtkKernel(NtkConfig(depth=2, activation="torch.nn.functional:elu", tolerance=1e-4))


class TestNngpOfRelu(Contract):
    kernel = NngpLimitKernel(NngpLimitConfig(depth=3, weight_variance=2.0))


class TestNngpOfCosine(Contract):
    kernel = NngpLimitKernel(NngpLimitConfig(depth=2, activation="cosine", bias_variance=0.1))


class TestNngpOfSigmoid(Contract):
    kernel = NngpLimitKernel(NngpLimitConfig(depth=2, activation="sigmoid", inner_product="sum"))


@pytest.mark.parametrize("depth", sorted(UNIT_NTK))
def test_the_ntk_of_relu_on_the_sphere_has_the_known_values(depth):
    kernel = NtkKernel(NtkConfig(depth=depth, **UNIT))
    for cosine, expected in UNIT_NTK[depth].items():
        x, y = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64).split(1)
        assert float(kernel.block(x, y)) == pytest.approx(expected, abs=6e-9)
        assert float(kernel.block(3 * x, 0.1 * y)) == pytest.approx(expected, abs=6e-9)
    expected = torch.full((4,), depth + 1.0, dtype=torch.float64)
    torch.testing.assert_close(kernel.diagonal(vectors(4, 5)), expected, rtol=2e-15, atol=0)


@pytest.mark.parametrize(
    ("activation", "covariance", "value", "slope"),
    [
        ("gelu", (1, 0.5, 1), 0.22729492, 0.34226724),
        ("gelu", (2, 0.3, 0.7), 0.18040689, 0.29512147),
        ("erf", (1, 0.5, 1), 0.21634690, 0.45015816),
        ("erf", (2, 0.3, 0.7), 0.11082469, 0.37319312),
    ],
)
def test_duals_of_gelu_and_erf_have_the_known_values(activation, covariance, value, slope):
    assert duals(*covariance, activation=activation) == pytest.approx((value, slope), abs=1e-8)


@pytest.mark.parametrize("activation", sorted(SMOOTH))
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_duals_of_smooth_activations_agree_with_quadrature_in_the_plane(activation, covariance):
    function, derivative = SMOOTH[activation]
    value, slope = duals(*covariance, **options_of(activation))
    # Gauss-Hermite rules converge slowly for functions with poles near the real axis: it is they that limit these.
    limit = 1e-7 if activation == "torch:arctan" else 1e-11
    assert value == pytest.approx(quadrature(*covariance, function), abs=limit)
    if slope is not None:
        # The slope is a difference of kernels over the covariance.
        assert slope == pytest.approx(quadrature(*covariance, derivative), abs=limit + 4e-16 / abs(covariance[1]))


@pytest.mark.parametrize("activation", CLOSED)
def test_the_series_of_an_activation_with_a_closed_form_gives_the_same_kernel(activation, monkeypatch):
    x = torch.cat([vectors(10, 4), -vectors(2, 4), vectors(2, 4) + 1e-8])
    options = {"depth": 3, "bias_variance": 0.2, "inner_product": "sum"}
    closed = NtkKernel(NtkConfig(**options, **options_of(activation))).block(x)
    functions = {
        "erf": torch.erf,
        "gelu": torch.nn.functional.gelu,
        "identity": torch.clone,
        "sine": lambda z: torch.sin(1.7 * z),
        "cosine": lambda z: torch.cos(1.7 * z),
    }
    monkeypatch.setattr(torch, "activation_of_the_test", functions[activation], raising=False)
    series = NtkKernel(NtkConfig(**options, activation="torch:activation_of_the_test")).block(x)
    torch.testing.assert_close(series, closed, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.3), ("leaky_relu", -0.6), ("abs", -1)]
)
@pytest.mark.parametrize("angle", [0.0, 1e-5, 0.4, 1.5, 2.9, math.pi])
def test_duals_of_piecewise_linear_activations_agree_with_integrals_over_a_turn(activation, slope, angle):
    options = {"activation": activation} | ({"slope": slope} if activation == "leaky_relu" else {})
    x = torch.tensor([[1.5, 0.0], [0.5 * math.cos(angle), 0.5 * math.sin(angle)]], dtype=torch.float64)
    value = float(NngpLimitKernel(NngpLimitConfig(inner_product="sum", **options)).block(x[:1], x[1:]))
    tangent = float(NtkKernel(NtkConfig(inner_product="sum", **options)).block(x[:1], x[1:]))
    # E[r^2] = 2 for the length r of a normal vector of the plane.
    expected = 2 * 0.75 * on_a_circle(lambda u: u if u > 0 else slope * u, angle)
    assert value == pytest.approx(expected, abs=1e-10)
    steps = on_a_circle(lambda u: 1.0 if u > 0 else slope, angle)
    assert tangent == pytest.approx(expected + 0.75 * math.cos(angle) * steps, abs=1e-10)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs"])
def test_near_duplicates_of_kinked_networks_are_as_accurate_as_all_others(activation):
    # One layer: D' falls by (q^2 2 / pi) t with the angle t. Cosines of angles below 1e-8 are one.
    options = {"activation": activation} | ({"slope": 0.25} if activation == "leaky_relu" else {})
    even = ((1 - {"relu": 0.0, "leaky_relu": 0.25, "abs": -1.0}[activation]) / 2) ** 2
    base, across = torch.eye(12, dtype=torch.float64)[:2]
    kernel = NtkKernel(NtkConfig(inner_product="sum", **options))
    for angle in (1e-12, 1e-10, 1e-8, 1e-6):
        near = math.cos(angle) * base + math.sin(angle) * across
        missing = float(kernel.diagonal(base[None]) - kernel.block(base[None], near[None]))
        assert missing == pytest.approx(even * 2 / math.pi * angle, abs=2 * angle**2 + 5e-16)


def test_networks_of_absolutes_see_no_difference_between_near_opposite_and_near_equal_vectors():
    base, across = torch.eye(12, dtype=torch.float64)[:2]
    near = torch.stack([math.cos(angle) * base + math.sin(angle) * across for angle in (1e-12, 1e-9, 1e-6, 1e-3)])
    kernel = NtkKernel(NtkConfig(activation="abs", depth=3, inner_product="sum"))
    torch.testing.assert_close(kernel.block(base[None], -near), kernel.block(base[None], near), rtol=0, atol=1e-14)


def test_near_duplicates_stay_accurate_through_many_layers():
    # For small angles t the ReLU's 1 - kappa1 is t^2 / 2 (1 - 2 t / (3 pi)), so that angles hardly change, and each of
    # the layers' kappa0 = 1 - t / pi is missing from the products that the tangent kernel adds.
    depth, angle = 20, 1e-9
    base, across = torch.eye(12, dtype=torch.float64)[:2]
    near = math.cos(angle) * base + math.sin(angle) * across
    found = float(NtkKernel(NtkConfig(depth=depth, **UNIT)).block(base[None], near[None]))
    missing = angle / math.pi * depth * (depth + 1) / 2
    assert depth + 1 - found == pytest.approx(missing, rel=1e-4)


def looped_network(x, y, config):
    """The recursion of one pair, in plain numbers, for networks of erf."""

    def inner(p, q):
        return float(p @ q) / (len(p) if config.inner_product == "mean" else 1)

    def dual(a, b, c):
        return 2 / math.pi * math.asin(2 * b / math.sqrt((1 + 2 * a) * (1 + 2 * c)))

    weight, bias = config.weight_variance, config.bias_variance or 0.0
    a, b, c = (weight * inner(p, q) + bias for p, q in ((x, x), (x, y), (y, y)))
    kernel = b
    for _ in range(config.depth):
        slope = 4 / math.pi / math.sqrt((1 + 2 * a) * (1 + 2 * c) - 4 * b * b)
        a, b, c = (weight * dual(*three) + bias for three in ((a, a, a), (a, b, c), (c, c, c)))
        kernel = b + weight * slope * kernel
    return b, kernel


@pytest.mark.parametrize("inner_product", ["mean", "sum"])
@pytest.mark.parametrize("bias_variance", [None, 0.4])
@pytest.mark.parametrize("depth", [1, 4])
def test_networks_of_erf_agree_with_the_recursion_of_one_pair(inner_product, bias_variance, depth):
    options = {"depth": depth, "weight_variance": 1.3, "bias_variance": bias_variance, "inner_product": inner_product}
    config = NtkConfig(activation="erf", **options)
    x, y = vectors(6, 5), vectors(4, 5, seed=1)
    covariances, kernels = torch.tensor(
        [[looped_network(p, q, config) for q in y] for p in x], dtype=torch.float64
    ).unbind(-1)
    torch.testing.assert_close(NtkKernel(config).block(x, y), kernels, rtol=1e-12, atol=1e-14)
    nngp = NngpLimitKernel(NngpLimitConfig(activation="erf", **options))
    torch.testing.assert_close(nngp.block(x, y), covariances, rtol=1e-12, atol=1e-14)
    own = torch.tensor([looped_network(p, p, config) for p in x], dtype=torch.float64)
    torch.testing.assert_close(NtkKernel(config).block(x).diagonal(), own[:, 1], rtol=1e-12, atol=0)
    torch.testing.assert_close(nngp.diagonal(x), own[:, 0], rtol=1e-12, atol=0)


def test_the_covariance_of_one_relu_layer_is_half_the_arc_cosine_kernel():
    x = vectors(9, 6)
    found = NngpLimitKernel(NngpLimitConfig(inner_product="sum")).block(x)
    torch.testing.assert_close(found, ArcCosineKernel(ArcCosineConfig(order=1)).block(x) / 2, rtol=1e-13, atol=1e-14)


def test_linear_networks_have_linear_kernels():
    x = vectors(9, 6)
    gram = x @ x.T / 6
    found = NtkKernel(NtkConfig(activation="identity", depth=4)).block(x)
    torch.testing.assert_close(found, 5 * gram, rtol=1e-12, atol=1e-13)


def test_zero_vectors_have_zero_rows_without_biases_and_regular_ones_with_them():
    x = vectors(4, 6)
    x[1] = 0
    for activation in ("relu", "abs", "erf", "gelu", "sine", "tanh", "silu"):
        matrix = NtkKernel(NtkConfig(depth=3, activation=activation)).block(x)
        assert torch.isfinite(matrix).all()
        assert float(matrix[1].abs().max()) < 1e-25
        assert float(matrix[0, 0]) > 1e-3
    with_biases = NtkKernel(NtkConfig(depth=3, bias_variance=0.5)).block(x)
    assert float(with_biases[1].min()) > 0.1
    # sigmoid(0) = 1/2 and E[sigmoid] = 1/2.
    constant = NngpLimitKernel(NngpLimitConfig(activation="sigmoid")).block(x)
    torch.testing.assert_close(constant[1], torch.full((4,), 0.25, dtype=torch.float64), rtol=1e-13, atol=0)


def test_a_zero_vector_meets_the_kink_of_relu_with_the_mean_of_both_slopes():
    # Biases that start at zero are trained: T_{l+1} = 1 + n D + 1.6 / 4 T_l with D = 0 and both derivatives 1/2.
    x = vectors(4, 6)
    x[1] = 0
    options = {"weight_variance": 1.6, "bias_variance": 0.0, "parameterisation": "standard", "width": 30}
    for depth, expected in ((1, 1.4), (2, 1.56), (3, 1.624)):
        kernel = NtkKernel(NtkConfig(depth=depth, **options))
        matrix = kernel.block(x)
        assert matrix[1].tolist() == pytest.approx([expected] * 4, rel=1e-14)
        assert kernel.block(x, x)[1].tolist() == pytest.approx([expected] * 4, rel=1e-14)


def test_a_critical_relu_network_keeps_variances_over_fifty_layers_and_a_weaker_one_loses_them():
    x = vectors(3, 8)
    inputs = x.square().mean(1)
    kept = NngpLimitKernel(NngpLimitConfig(depth=50, weight_variance=2.0)).diagonal(x)
    torch.testing.assert_close(kept, 2 * inputs, rtol=1e-12, atol=0)
    lost = NngpLimitKernel(NngpLimitConfig(depth=50, weight_variance=1.9)).diagonal(x)
    torch.testing.assert_close(lost, 1.9 * 0.95**50 * inputs, rtol=1e-12, atol=0)


def test_standard_parameters_weigh_layers_by_their_fan_in():
    x = vectors(7, 5)
    options = {"activation": "erf", "weight_variance": 1.4, "bias_variance": 0.0, "parameterisation": "standard"}
    # One hidden layer: n D + 1 of the read-out, and weight_variance D' (<x, y> + 1) of the inputs.
    value = NngpLimitKernel(NngpLimitConfig(activation="erf", weight_variance=1.4)).block(x) / 1.4
    tangent = NtkKernel(NtkConfig(activation="erf", weight_variance=1.4)).block(x)
    slope = (tangent - 1.4 * value) / (1.4 * x @ x.T / 5)
    found = NtkKernel(NtkConfig(width=50, **options)).block(x)
    torch.testing.assert_close(found, 50 * value + 1 + slope * (x @ x.T + 1), rtol=1e-11, atol=1e-11)
    per_unit = NtkKernel(NtkConfig(**options)).block(x)
    torch.testing.assert_close(per_unit, value, rtol=1e-12, atol=1e-14)
    huge = NtkKernel(NtkConfig(width=10**12, **options)).block(x)
    torch.testing.assert_close(huge / 10**12, per_unit, rtol=1e-9, atol=1e-9)


def test_without_biases_standard_parameters_lack_the_biases_part():
    x = vectors(5, 5)
    options = {"depth": 1, "activation": "identity", "parameterisation": "standard", "width": 30}
    gram = x @ x.T
    # Linear: n <x, y> / d + <x, y>; biases that start at zero add 1 of the read-out and 1 of the hidden layer.
    none = NtkKernel(NtkConfig(**options)).block(x)
    torch.testing.assert_close(none, 30 * gram / 5 + gram, rtol=1e-12, atol=1e-12)
    zero = NtkKernel(NtkConfig(bias_variance=0.0, **options)).block(x)
    torch.testing.assert_close(zero, none + 2, rtol=1e-12, atol=1e-12)


class Finite:
    """A network of one output and equal hidden widths, and its tangent kernel by autograd."""

    def __init__(self, dim, depth, width, function, *, weight, bias, standard):
        self.fans = [dim, *[width] * depth]
        self.outputs = [*[width] * depth, 1]
        self.function, self.weight, self.bias, self.standard = function, weight, bias, standard

    def kernel(self, x, seed):
        generator = torch.Generator().manual_seed(seed)
        parameters = []
        for fan_in, outputs in zip(self.fans, self.outputs, strict=True):
            weights = torch.randn(outputs, fan_in, dtype=torch.float64, generator=generator)
            biases = torch.randn(outputs, dtype=torch.float64, generator=generator)
            if self.standard:
                weights, biases = weights * math.sqrt(self.weight / fan_in), biases * math.sqrt(self.bias)
            parameters += [weights.requires_grad_(), biases.requires_grad_()]
        rows = [
            torch.cat([part.flatten() for part in torch.autograd.grad(self.output(one, parameters), parameters)])
            for one in x
        ]
        jacobian = torch.stack(rows)
        return jacobian @ jacobian.T

    def output(self, hidden, parameters):
        for layer, fan_in in enumerate(self.fans):
            weights, biases = parameters[2 * layer : 2 * layer + 2]
            if layer:
                hidden = self.function(hidden)
            if self.standard:
                hidden = weights @ hidden + biases
            else:
                hidden = math.sqrt(self.weight / fan_in) * (weights @ hidden) + math.sqrt(self.bias) * biases
        return hidden.squeeze()


FUNCTIONS = {"relu": torch.relu, "erf": torch.erf, "tanh": torch.tanh}


@pytest.mark.parametrize("activation", sorted(FUNCTIONS))
@pytest.mark.parametrize("parameterisation", ["ntk", "standard"])
@pytest.mark.parametrize(
    ("widths", "num_seeds"),
    [((64, 128, 256, 512), 24), pytest.param((64, 128, 256, 512, 1024), 60, marks=pytest.mark.slow)],
)
def test_random_networks_approach_the_limit_like_one_over_the_root_of_their_width(
    activation, parameterisation, widths, num_seeds
):
    x = vectors(4, 3)
    options = {"depth": 2, "activation": activation, "weight_variance": 1.5, "bias_variance": 0.2}
    standard = parameterisation == "standard"
    errors = []
    for width in widths:
        network = Finite(3, 2, width, FUNCTIONS[activation], weight=1.5, bias=0.2, standard=standard)
        given = {"width": width} if standard else {}
        limit = NtkKernel(NtkConfig(parameterisation=parameterisation, **given, **options)).block(x)
        found = torch.stack([network.kernel(x, 1000 * width + seed) for seed in range(num_seeds)])
        errors.append(float((found - limit).square().sum((1, 2)).mean().sqrt() / limit.norm()))
        # The mean over networks is the limit up to chance and a bias of order one over the width.
        chance = found.std(0) / math.sqrt(num_seeds)
        assert ((found.mean(0) - limit).abs() <= 4.5 * chance + limit.abs() * 4 / width).all()
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35
    assert errors[-1] < 0.2


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["relu", "abs", "leaky_relu", "erf", "gelu", "sine", "cosine", "tanh", "silu"]),
    st.integers(1, 6),
    st.floats(0.1, 2.0),
    st.sampled_from([None, 0.0, 0.5]),
    st.integers(0, 1000),
)
def test_every_network_gives_positive_matrices_with_the_largest_entries_on_the_diagonal(
    activation, depth, weight, bias, seed
):
    x = vectors(7, 3, seed)
    kernel = NtkKernel(NtkConfig(activation=activation, depth=depth, weight_variance=weight, bias_variance=bias))
    matrix = kernel.block(x)
    size = max(1.0, float(matrix.abs().max()))
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-11 * size
    diagonal = kernel.diagonal(x)
    assert (matrix.abs() <= (diagonal[:, None] * diagonal).sqrt() + 1e-11 * size).all()


def test_a_matrix_of_many_strips_equals_its_parts():
    x = vectors(400, 6)
    for activation in ("relu", "tanh"):
        kernel = NtkKernel(NtkConfig(depth=2, activation=activation, bias_variance=0.1))
        whole = kernel.block(x)
        assert torch.equal(whole, whole.T)
        torch.testing.assert_close(kernel.block(x[37:300], x), whole[37:300], rtol=0, atol=1e-13)


def test_errors_of_activations_with_kinks_are_below_their_tolerance():
    # As a series, without the closed form that the name relu has.
    x = torch.cat([vectors(20, 3), vectors(20, 3) + 1e-3 * vectors(20, 3, seed=1)])
    closed = NtkKernel(NtkConfig(depth=1)).block(x)
    series = NtkKernel(NtkConfig(depth=1, activation="torch:relu", tolerance=0.02)).block(x)
    error = float((series - closed).abs().max() / closed.max())
    assert 1e-7 < error < 0.01
    torch.testing.assert_close(series.diagonal(), closed.diagonal(), rtol=1e-12, atol=0)


def test_series_that_do_not_reach_the_tolerance_are_refused_with_what_to_do():
    x = vectors(4, 3)
    with pytest.raises(
        ConfigError, match=r"torch:relu at variance .* tolerance = 1.0e-05.*closed form, or raise tolerance"
    ):
        NtkKernel(NtkConfig(activation="torch:relu")).block(x)
    with pytest.raises(ConfigError, match="reduce weight_variance"):
        NtkKernel(NtkConfig(activation="tanh")).block(40 * x)
    # A kink between the nodes of the quadrature.
    with pytest.raises(ConfigError, match=r"torch\.nn\.functional:hardtanh"):
        NngpLimitKernel(NngpLimitConfig(activation="torch.nn.functional:hardtanh", tolerance=1e-9)).block(1.1 * x)


def test_activations_that_are_no_functions_of_single_numbers_are_refused():
    x = vectors(4, 3)
    for name, text in (
        ("torch:no_such_function", "no callable"),
        ("no_such_module:f", "cannot be imported"),
        ("torch:sum", "entry by entry"),
        ("torch:log", "not finite"),
        ("torch:isfinite", "cannot be differentiated"),
    ):
        with pytest.raises(ConfigError, match=text):
            NtkKernel(NtkConfig(activation=name)).block(x)


def test_variances_that_overflow_are_refused():
    with pytest.raises(ConfigError, match=r"layer .* exceeds double precision"):
        NtkKernel(NtkConfig(depth=500, weight_variance=1e3)).block(vectors(3, 4))


def test_normalising_divides_an_activation_by_its_root_mean_square():
    x = vectors(6, 4)
    plain = NngpLimitKernel(NngpLimitConfig(activation="tanh", inner_product="cosine")).block(x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    mean = float(weights @ np.tanh(nodes) ** 2) / math.sqrt(2 * math.pi)
    normal = NngpLimitKernel(NngpLimitConfig(activation="tanh", **UNIT))
    torch.testing.assert_close(normal.block(x), plain / mean, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(normal.diagonal(x), torch.ones(6, dtype=torch.float64), rtol=1e-13, atol=0)


def test_no_samples_give_an_empty_matrix():
    x = vectors(3, 4)
    for activation in ("relu", "gelu", "tanh"):
        kernel = NtkKernel(NtkConfig(activation=activation))
        assert kernel.block(x[:0]).shape == (0, 0)
        assert kernel.block(x[:0], x).shape == (0, 3)
        assert kernel.block(x, x[:0]).shape == (3, 0)
        assert kernel.diagonal(x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"activation": "torch.relu"}, "package.module:callable"),
        ({"slope": 0.1}, "option of leaky_relu"),
        ({"activation": "tanh", "frequency": 2.0}, "option of sine and cosine"),
        ({"width": 10}, "use parameterisation 'standard'"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"weight_variance": 0}, "greater than 0"),
        ({"bias_variance": -1}, "greater than or equal to 0"),
        ({"inner_product": "max"}, "'mean', 'sum' or 'cosine'"),
        ({"activation": "erf", "tolerance": 1e-3}, "leave it out"),
        ({"tolerance": 1}, "less than or equal to 0.1"),
    ],
)
def test_options_that_define_no_network_are_refused(options, text):
    with pytest.raises(ValidationError, match=text):
        NtkConfig(**options)
