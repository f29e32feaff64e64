"""Signature kernels of paths against iterated integrals, plain loops and finite networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import special

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.configs.kernels.structured import NeuralSignatureConfig, SignatureConfig
from ntkpipe.workers.kernels.closed_form import signatures as signatures_module
from ntkpipe.workers.kernels.closed_form.neural_signatures import NeuralSignatureKernel
from ntkpipe.workers.kernels.closed_form.signatures import SignatureKernel

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": lambda z: math.sqrt(2) * np.maximum(z, 0),
    "erf": special.erf,
    "gelu": lambda z: z * special.ndtr(z),
}


def paths(num=7, points=5, dim=2, step=0.4, seed=0):
    x = step * torch.randn(num, points, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x.cumsum(1)
    x[-1] = x[0]
    return x


def signature(**options):
    return SignatureKernel(SignatureConfig(**options))


def neural(**options):
    return NeuralSignatureKernel(NeuralSignatureConfig(**options))


def static_kernel(options):
    width, scale = options.get("bandwidth") or 1.0, options.get("scale", 1.0)
    if options.get("static") == "rbf":
        return lambda a, b: scale * math.exp(-float(((a - b) ** 2).sum()) / (2 * width**2))
    return lambda a, b: scale * float((a * b).sum())


def cells_of(x, y, options, order):
    """Second differences on the refined grid, one by one."""
    k = static_kernel(options)
    coarse = [
        [k(x[i + 1], y[j + 1]) - k(x[i + 1], y[j]) - k(x[i], y[j + 1]) + k(x[i], y[j]) for j in range(len(y) - 1)]
        for i in range(len(x) - 1)
    ]
    fine_i, fine_j = (len(x) - 1) << order, (len(y) - 1) << order
    return [[coarse[i >> order][j >> order] / 4**order for j in range(fine_j)] for i in range(fine_i)]


def scheme_by_loops(x, y, options, order):
    cells = cells_of(x, y, options, order)
    num_i, num_j = len(cells), len(cells[0])
    k = [[1.0] * (num_j + 1) for _ in range(num_i + 1)]
    for i, j in itertools.product(range(num_i), range(num_j)):
        g = cells[i][j]
        sides = k[i + 1][j] + k[i][j + 1]
        k[i + 1][j + 1] = sides * (1 + g / 2 + g * g / 12) - k[i][j] * (1 - g * g / 12)
    return k[-1][-1]


def truncated_signature(path, levels):
    """All iterated integrals up to a level, by Chen's identity: products of exponentials of the steps."""
    total = [np.ones(())] + [np.zeros((path.shape[1],) * level) for level in range(1, levels + 1)]
    for step in np.diff(path, axis=0):
        exponential = [np.ones(())]
        for level in range(1, levels + 1):
            exponential.append(np.multiply.outer(exponential[-1], step) / level)
        total = [
            sum(np.multiply.outer(total[part], exponential[level - part]) for part in range(level + 1))
            for level in range(levels + 1)
        ]
    return np.concatenate([part.ravel() for part in total])


# Signatures


@pytest.mark.parametrize(("order", "expected"), [(0, 2.25), (3, 2.280023), (6, 2.279594)])
def test_the_scheme_on_straight_lines_gives_the_known_values(order, expected):
    line = torch.tensor([[[0.0, 0.0], [0.6, 0.8]], [[3.0, 1.0], [3.6, 1.8]]], dtype=torch.float64)
    kernel = signature(dyadic_order=order)
    assert kernel.block(line).numpy() == pytest.approx(expected, abs=5e-7)
    assert kernel.diagonal(line).numpy() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("product", [-9.0, -0.5, 0.0, 0.25, 1.0, 30.0])
def test_power_series_on_straight_lines_give_bessel_functions(product):
    x = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    y = torch.tensor([[[5.0], [5.0 + product]]], dtype=torch.float64)
    root = 2 * math.sqrt(abs(product))
    expected = special.iv(0, root) if product >= 0 else special.jv(0, root)
    assert float(signature().block(x, y)) == pytest.approx(expected, rel=1e-13, abs=1e-13)
    if product == 1:
        assert expected == pytest.approx(2.2795853, abs=5e-8)


def test_the_kernel_is_the_inner_product_of_iterated_integrals():
    x = paths(num=5, points=4, step=0.3)
    features = np.stack([truncated_signature(path.numpy(), 10) for path in x])
    np.testing.assert_allclose(signature().block(x), features @ features.T, rtol=1e-12)
    np.testing.assert_allclose(signature(dyadic_order=6).block(x), features @ features.T, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"static": "rbf", "bandwidth": 0.8, "scale": 1.5}])
@pytest.mark.parametrize("order", [0, 2])
def test_blocks_match_plain_loops_over_cells(options, order):
    x, y = paths(num=3, points=4), paths(num=2, points=6, seed=1)
    found = signature(dyadic_order=order, **options).block(x, y)
    expected = [[scheme_by_loops(a, b, options, order) for b in y] for a in x]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"static": "rbf", "bandwidth": 0.7}])
def test_the_scheme_converges_to_the_power_series_at_second_order(options):
    x = paths()
    exact = signature(**options).block(x)
    errors = [float((signature(dyadic_order=order, **options).block(x) - exact).abs().max()) for order in range(3, 7)]
    assert all(after < before / 3.4 for before, after in itertools.pairwise(errors))


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 0.95), st.integers(0, 3), st.integers(0, 99))
def test_time_does_not_matter(where, step, seed):
    x = paths(seed=seed)
    between = (1 - where) * x[:, step] + where * x[:, step + 1]
    denser = torch.cat([x[:, : step + 1], between[:, None], x[:, step + 1 :]], dim=1)
    expected = signature().block(x)
    torch.testing.assert_close(signature().block(denser), expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(signature().block(denser, x), expected, rtol=1e-11, atol=1e-11)
    scheme = signature(dyadic_order=5)
    torch.testing.assert_close(scheme.block(denser), scheme.block(x), rtol=0, atol=2e-3 * float(expected.max()))


@pytest.mark.parametrize("options", [{}, {"dyadic_order": 2}, {"static": "rbf", "dyadic_order": 1}, {"static": "rbf"}])
def test_repeated_points_and_translations_change_nothing(options):
    x = paths()
    resting = torch.cat([x[:, :1], x[:, :1], x[:, :3], x[:, 2:], x[:, -1:]], dim=1)
    moved = x + torch.tensor([3.0, -1.0], dtype=torch.float64)
    kernel = signature(**options)
    torch.testing.assert_close(kernel.block(resting, x), kernel.block(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel.block(moved), kernel.block(x), rtol=1e-12, atol=1e-12)


def test_a_path_and_its_reverse_cancel():
    x = paths(num=3)
    there_and_back = torch.cat([x, x.flip(1)[:, 1:]], dim=1)
    torch.testing.assert_close(signature().block(there_and_back, x), torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("kernel", [signature(), signature(dyadic_order=0), signature(static="rbf"), neural()])
def test_paths_without_increments_have_the_kernel_one(kernel):
    x, points = paths(), torch.zeros(2, 1, 2, dtype=torch.float64)
    assert torch.equal(kernel.block(points), torch.ones(2, 2, dtype=torch.float64))
    assert torch.equal(kernel.block(points, x), torch.ones(2, 7, dtype=torch.float64))
    assert torch.equal(kernel.diagonal(torch.ones(3, 4, 2, dtype=torch.float64)), torch.ones(3, dtype=torch.float64))
    assert kernel.block(x[:0], x).shape == (0, 7)
    assert kernel.diagonal(x[:0]).shape == (0,)


@pytest.mark.parametrize("kernel", [signature(), signature(dyadic_order=1), neural(activation="erf")])
def test_entries_do_not_depend_on_how_pairs_are_batched(kernel, monkeypatch):
    x, y = paths(num=9), paths(num=5, points=3, seed=4)
    expected = kernel.block(x), kernel.block(x, y), kernel.diagonal(x)
    for pairs in (1, 4, 7):
        monkeypatch.setattr(signatures_module, "MAX_PAIRS", pairs)
        for found, whole in zip((kernel.block(x), kernel.block(x, y), kernel.diagonal(x)), expected, strict=True):
            torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


def test_rough_paths_of_a_hundred_steps_are_positive_and_agree_with_a_fine_grid():
    x = 0.1 * torch.randn(6, 100, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = signature().block(x)
    assert float(torch.linalg.eigvalsh(exact)[0]) > 0
    torch.testing.assert_close(signature(dyadic_order=4).block(x), exact, rtol=0, atol=2e-5)


def test_paths_that_are_too_long_are_refused_instead_of_wrong():
    x = paths(points=101, dim=3, step=2.0)
    with pytest.raises(NumericalError, match="smaller scale"):
        signature().block(1e3 * x)
    with pytest.raises(NumericalError, match="exceeds double precision"):
        signature(dyadic_order=0).block(1e3 * x)
    with pytest.raises(NumericalError, match="exceeds double precision"):
        neural(activation="identity", dyadic_order=0).block(1e200 * x)


def test_grids_that_are_too_coarse_are_refused_where_norms_come_out_as_impossible():
    x = torch.tensor([[[-1.0, 1.0], [1.0, -1.0], [0.0, -1.0], [1.0, 1.0]]], dtype=torch.float64)
    assert scheme_by_loops(x[0], x[0], {}, 0) < 0
    for kernel in (signature(dyadic_order=0).block, signature(dyadic_order=0).diagonal):
        with pytest.raises(NumericalError, match=r"came out as -48\.3.*larger dyadic order"):
            kernel(x)
    features = truncated_signature(x[0].numpy(), 14)
    assert float(signature().diagonal(x)) == pytest.approx(features @ features, rel=1e-4)


def test_power_series_are_stable_along_paths_that_go_back_and_forth():
    # Long steps, but hardly any displacement: cells of large positive and negative products cancel.
    time = 3.1 * torch.arange(20, dtype=torch.float64)
    x = torch.stack([time.cos(), time.sin()], dim=1)[None]
    # The same series with 200 bits.
    assert float(signature().diagonal(x)) == pytest.approx(9.32348941200634, rel=1e-9)


def test_samples_that_are_no_paths_and_fields_that_make_no_sense_are_refused():
    for kernel in (signature(), neural()):
        with pytest.raises(ConfigError, match=r"points, dimension.*found \(5,\)"):
            kernel.block(torch.zeros(3, 5, dtype=torch.float64))
        with pytest.raises(ConfigError, match="one dimension, found 2 and 3"):
            kernel.block(paths(), paths(dim=3))
    with pytest.raises(ValidationError, match=r"bandwidth = 2\.0 has no meaning"):
        SignatureConfig(bandwidth=2.0)


# Neural signatures


def gaussian_mean(function, a, b, c):
    """E[f(u) f(v)] by Gauss-Hermite in the plane; kinks of the ReLU cost digits, hence the tolerance of its callers."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200 if function is ACTIVATIONS["relu"] else 70)
    weights = weights / weights.sum()
    u = math.sqrt(a) * nodes[:, None]
    v = b / math.sqrt(a) * nodes[:, None] + math.sqrt(max(c - b * b / a, 0)) * nodes
    return float(weights @ (function(u) * function(v)) @ weights)


def neural_by_loops(x, y, function, options, order):
    """The scheme in the order of its definition, with the diagonals of both paths first."""

    def grid(one, two, first, second):
        cells = cells_of(one, two, options, order)
        k = np.ones((len(cells) + 1, len(cells[0]) + 1))
        for total in range(len(cells) + len(cells[0]) - 1):
            for i in range(len(cells)):
                if 0 <= total - i < len(cells[0]):
                    j = total - i
                    a = k[i, i] if first is None else first[i]
                    c = k[j, j] if second is None else second[j]
                    dual = gaussian_mean(function, a, k[i, j], c)
                    g = options["weight_variance"] * dual + options["bias_variance"]
                    k[i + 1, j + 1] = k[i + 1, j] + k[i, j + 1] - k[i, j] + g * cells[i][j]
        return k

    def own(path):
        # K at (j, j) is needed before the antidiagonal that holds it: shell after shell.
        cells = cells_of(path, path, options, order)
        k = np.ones((len(cells) + 1,) * 2)
        for m in range(len(cells)):
            for b in range(m + 1):
                for i, j in ((m, b), (b, m)):
                    dual = gaussian_mean(function, k[i, i], k[i, j], k[j, j])
                    g = options["weight_variance"] * dual + options["bias_variance"]
                    k[i + 1, j + 1] = k[i + 1, j] + k[i, j + 1] - k[i, j] + g * cells[i][j]
        return np.diagonal(k)

    return grid(x, y, own(x), own(y))[-1, -1], own(x)[-1]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("static", ["linear", "rbf"])
def test_neural_blocks_match_plain_loops_with_quadrature(activation, static):
    x, y = paths(num=2, points=4)[:1], paths(num=2, points=3, seed=1)[:1]
    options = {"weight_variance": 1.3, "bias_variance": 0.2, "static": static, "scale": 0.8}
    kernel = neural(activation=activation, dyadic_order=1, **options)
    expected, expected_own = neural_by_loops(x[0], y[0], ACTIVATIONS[activation], options, 1)
    tolerance = 2e-4 if activation == "relu" else 1e-9
    assert float(kernel.block(x, y)) == pytest.approx(expected, rel=tolerance)
    assert float(kernel.diagonal(x)) == pytest.approx(expected_own, rel=tolerance)


def test_the_identity_gives_the_signature_kernel_to_first_order():
    x = paths()
    exact = signature().block(x)
    errors = [
        float((neural(activation="identity", dyadic_order=order).block(x) - exact).abs().max()) for order in range(4, 8)
    ]
    for before, after in itertools.pairwise(errors):
        assert 1.8 < before / after < 2.2
    assert errors[-1] < 0.02 * float(exact.max())


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_finite_residual_networks_converge_to_the_neural_kernel(activation):
    x = paths(num=3, points=5, dim=2, step=0.5)
    expected = neural(activation=activation, dyadic_order=0, weight_variance=0.8, bias_variance=0.3).block(x)
    generator, function, width = np.random.default_rng(0), ACTIVATIONS[activation], 300
    total, num_networks = np.zeros((3, 3)), 40
    for _ in range(num_networks):
        state = np.repeat(generator.normal(size=(1, width)), 3, axis=0)
        weights = math.sqrt(0.8 / width) * generator.normal(size=(2, width, width))
        biases = math.sqrt(0.3) * generator.normal(size=(2, width))
        for step in np.diff(x.numpy(), axis=1).transpose(1, 0, 2):
            fields = np.stack([function(state) @ weights[k].T + biases[k] for k in range(2)])
            state = state + (step.T[:, :, None] * fields).sum(0)
        total += state @ state.T / width
    np.testing.assert_allclose(total / num_networks, expected, rtol=0.04)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_coarse_grids_are_positive_because_they_are_kernels_of_networks(activation):
    x = paths(num=12, points=7, step=1.0)[:-1]
    matrix = neural(activation=activation, dyadic_order=0, weight_variance=0.5).block(x)
    assert float(torch.linalg.eigvalsh(matrix)[0]) > -1e-12 * float(matrix.max())


# Contracts


class PathContract(KernelContract):
    kernel = None

    def samples(self):
        return paths()

    def block(self, x, x2=None):
        return self.kernel.block(x, x2)

    def diagonal(self, x):
        return self.kernel.diagonal(x)


class TestSignature(PathContract):
    kernel = signature()


class TestSignatureScheme(PathContract):
    kernel = signature(dyadic_order=3, scale=0.5)


class TestLiftedSignature(PathContract):
    kernel = signature(static="rbf", bandwidth=0.6)


class TestNeuralSignatureRelu(PathContract):
    kernel = neural()


class TestNeuralSignatureErf(PathContract):
    kernel = neural(activation="erf", bias_variance=0.1, static="rbf")


class TestNeuralSignatureGelu(PathContract):
    kernel = neural(activation="gelu", weight_variance=2.0)


class TestNeuralSignatureIdentity(PathContract):
    kernel = neural(activation="identity", dyadic_order=0)
