"""Kernels of infinitely wide convolutional networks against plain loops over pixels and finite networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.structured import ConvolutionalConfig
from ntkpipe.workers.kernels.closed_form import convolutional as convolutional_module
from ntkpipe.workers.kernels.closed_form.convolutional import ConvolutionalKernel
from ntkpipe.workers.kernels.closed_form.duals.covariances import relu_duals

HEADS = ("flatten", "gap")


def cntk(**options):
    return ConvolutionalKernel(ConvolutionalConfig(**options))


def images(num=6, channels=2, height=3, width=4, seed=0):
    x = torch.randn(num, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x[-1] = x[0]
    return x


def kappas(a, b, c):
    """Both duals of sqrt(2) relu."""
    norm = math.sqrt(a * c)
    if norm == 0:
        return 0.0, 0.0
    angle = math.acos(max(-1.0, min(1.0, b / norm)))
    return norm * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi, 1 - angle / math.pi


def by_loops(x, y, depth, filter_size, head, output):
    """The recursion for all pairs of pixels of two images, one number at a time."""
    pixels = list(itertools.product(range(x.shape[1]), range(x.shape[2])))
    reach = filter_size // 2
    offsets = list(itertools.product(range(-reach, reach + 1), repeat=2))

    def patch_sums(matrix):
        def at(p, q):
            return matrix.get((p, q), 0.0)

        return {
            (p, q): sum(at((p[0] + d, p[1] + e), (q[0] + d, q[1] + e)) for d, e in offsets)
            for p in pixels
            for q in pixels
        }

    def products(one, two):
        return {(p, q): sum(float(one[c][p] * two[c][q]) for c in range(one.shape[0])) for p in pixels for q in pixels}

    pairs = {"xx": (x, x), "xy": (x, y), "yy": (y, y)}
    sigma = {name: patch_sums(products(*pair)) for name, pair in pairs.items()}
    theta = sigma["xy"]
    for layer in range(depth):
        duals = {}
        for name, (first, second) in {"xx": ("xx", "xx"), "xy": ("xx", "yy"), "yy": ("yy", "yy")}.items():
            duals[name] = {
                (p, q): kappas(sigma[first][p, p], sigma[name][p, q], sigma[second][q, q])
                for p in pixels
                for q in pixels
            }
        values = {name: {at: pair[0] / filter_size**2 for at, pair in found.items()} for name, found in duals.items()}
        theta = {at: duals["xy"][at][1] / filter_size**2 * theta[at] + values["xy"][at] for at in theta}
        if layer < depth - 1:
            sigma = {name: patch_sums(found) for name, found in values.items()}
            theta = patch_sums(theta)
    last = theta if output == "ntk" else values["xy"]
    if head == "flatten":
        return sum(last[p, p] for p in pixels)
    return sum(last.values()) / len(pixels) ** 2


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (1, (0, -0.05766889, 0.31830989, 0.94233111, 2)),
        (2, (0.31830989, 0.34386225, 0.68570864, 1.35147956, 3)),
        (3, (0.68570864, 0.74224932, 1.06038811, 1.73784468, 4)),
        (5, (1.43039050, 1.50710680, 1.79219597, 2.46289313, 6)),
    ],
)
def test_images_of_one_pixel_have_the_kernel_of_fully_connected_networks(head, depth, expected):
    u = torch.tensor([-1, -0.5, 0, 0.5, 1], dtype=torch.float64)
    x = torch.stack([u, (1 - u.square()).sqrt()], dim=1)[:, :, None, None]
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)[:, :, None, None]
    kernel = cntk(depth=depth, filter_size=1, head=head)
    assert kernel.block(one, x)[0].numpy() == pytest.approx(expected, abs=6e-9)
    torch.testing.assert_close(kernel.diagonal(x), torch.full((5,), depth + 1.0, dtype=torch.float64))
    # Zeros around the only pixel add nothing, and every wider filter only shares the weights' variance.
    wider = cntk(depth=1, filter_size=3, head=head).block(one, x) * 9
    torch.testing.assert_close(wider, cntk(depth=1, filter_size=1, head=head).block(one, x))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("output", ["ntk", "nngp"])
@pytest.mark.parametrize(("depth", "filter_size"), [(1, 3), (2, 3), (3, 1), (2, 5), (3, 9)])
def test_blocks_match_plain_loops_over_pixels(head, output, depth, filter_size):
    x, y = images(num=2), images(num=3, seed=1)[:2]
    kernel = cntk(depth=depth, filter_size=filter_size, head=head, output=output)
    expected = [[by_loops(a, b, depth, filter_size, head, output) for b in y] for a in x[:1]]
    np.testing.assert_allclose(kernel.block(x[:1], y), expected, rtol=1e-12)
    own = by_loops(x[0], x[0], depth, filter_size, head, output)
    assert float(kernel.diagonal(x[:1])) == pytest.approx(
        own, rel=1e-7
    )  # arc cosines of the loops lose half the digits


def network_kernel(x, depth, head, width, seed):
    """The tangent kernel of a random finite network with filters of 3 x 3, by autograd."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    sizes = [x.shape[1]] + [width] * depth
    filters = [normal(after, before, 3, 3) for before, after in itertools.pairwise(sizes)]
    num_pixels = x.shape[2] * x.shape[3]
    readout = normal(width, *x.shape[2:]) if head == "flatten" else normal(width)
    rows = []
    for image in x:
        hidden = image[None]
        for layer in filters:
            hidden = torch.relu(torch.nn.functional.conv2d(hidden, layer, padding=1)) * math.sqrt(2 / (9 * width))
        output = (hidden[0] * readout).sum() if head == "flatten" else hidden[0].sum((1, 2)) @ readout / num_pixels
        gradients = torch.autograd.grad(output, [*filters, readout])
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    features = torch.stack(rows)
    return features @ features.T


@pytest.mark.parametrize("head", HEADS)
def test_finite_random_networks_converge_to_the_kernel(head):
    x = images(num=4, height=3, width=3)[:3]
    exact = cntk(depth=2, head=head).block(x)
    errors = []
    for width in (16, 64, 256):
        found = torch.stack([network_kernel(x, 2, head, width, seed) for seed in range(16)])
        errors.append(float(((found - exact) / exact.max()).square().mean().sqrt()))
        bias = float(((found.mean(0) - exact) / exact.max()).abs().max())
        assert bias < 4 * errors[-1] / math.sqrt(16) + 1e-3
    slope = np.polyfit(np.log([16, 64, 256]), np.log(errors), 1)[0]
    assert -0.7 < slope < -0.3
    assert errors[-1] < 0.08


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 3, 5]), st.sampled_from(HEADS))
def test_the_kernel_is_homogeneous_and_does_not_see_mirror_images(height, width, depth, filter_size, head):
    x = images(num=3, height=height, width=width)
    kernel = cntk(depth=depth, filter_size=filter_size, head=head)
    expected = kernel.block(x)
    torch.testing.assert_close(kernel.block(3 * x, x), 3 * expected)
    torch.testing.assert_close(kernel.block(x.flip(-1)), expected)
    torch.testing.assert_close(kernel.block(x.mT.contiguous()), expected)
    torch.testing.assert_close(kernel.block(x.flip(1)), expected)


def test_global_averages_do_not_see_where_something_is_inside_a_wide_frame():
    x = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
    x[0, 0, 3:5, 3:5] = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    x[1, 0, 4:6, 5:7] = x[0, 0, 3:5, 3:5]
    found = cntk(depth=2, head="gap").block(x)
    torch.testing.assert_close(found, torch.full_like(found, float(found[0, 0])), rtol=1e-12, atol=0)
    apart = cntk(depth=2, head="flatten").block(x)
    assert float(apart[0, 1]) < 0.9 * float(apart[0, 0])


@pytest.mark.parametrize("head", HEADS)
def test_copies_and_multiples_of_an_image_are_recognised_to_the_last_digits(head):
    x = images(num=2)[:1]
    kernel = cntk(depth=4, head=head)
    own = float(kernel.diagonal(x))
    assert float(kernel.block(x, x.clone())) == pytest.approx(own, rel=1e-14)
    assert float(kernel.block(x, 0.3 * x)) == pytest.approx(0.3 * own, rel=1e-13)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("output", ["ntk", "nngp"])
def test_images_of_zeros_and_of_black_regions_are_defined(head, output):
    x = images(height=6, width=6)
    x[1] = 0
    x[2, :, :, 2:] = 0
    kernel = cntk(depth=2, head=head, output=output)
    found = kernel.block(x)
    assert torch.isfinite(found).all()
    assert not found[1].any()
    assert found[2, 2] > 0
    assert not kernel.diagonal(x)[1]


@pytest.mark.parametrize("head", HEADS)
def test_entries_do_not_depend_on_how_pairs_are_batched(head, monkeypatch):
    x, y = images(num=7), images(num=4, seed=3)
    kernel = cntk(depth=2, head=head)
    expected = kernel.block(x), kernel.block(x, y), kernel.diagonal(x)
    pair_bytes = 8 * (12 if head == "flatten" else 144)
    for pairs in (0, 3, 8):
        monkeypatch.setattr(convolutional_module, "BATCH_BYTES", pairs * pair_bytes)
        for found, whole in zip((kernel.block(x), kernel.block(x, y), kernel.diagonal(x)), expected, strict=True):
            torch.testing.assert_close(found, whole, rtol=1e-13, atol=0)


def test_no_images_give_an_empty_block():
    x = images()
    assert cntk().block(x[:0], x).shape == (0, 6)
    assert cntk().block(x, x[:0]).shape == (6, 0)
    assert cntk().diagonal(x[:0]).shape == (0,)


def test_samples_that_are_no_images_and_even_filters_are_refused():
    with pytest.raises(ConfigError, match=r"takes images.*found samples of shape \(4, 4\).*\(1, height, width\)"):
        cntk().block(torch.zeros(2, 4, 4, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"one shape, found \(2, 3, 4\) and \(2, 4, 3\)"):
        cntk().block(images(), images(height=4, width=3))
    with pytest.raises(ValidationError, match="filter_size = 2 must be odd"):
        ConvolutionalConfig(filter_size=2)


# The duals that the recursions share


def test_duals_are_those_of_the_table_and_exact_at_both_ends():
    u = torch.tensor([-1, -0.5, 0, 0.5, 1, 1 / math.sqrt(2)], dtype=torch.float64)
    one = torch.ones_like(u)
    value, slope = relu_duals(one, u, one)
    assert value.numpy() == pytest.approx([0, 0.10899778, 0.31830989, 0.60899778, 1, 0.75540916], abs=6e-9)
    assert slope.numpy() == pytest.approx([0, 1 / 3, 0.5, 2 / 3, 1, 0.75], abs=1e-15)
    assert (float(value[0]), float(slope[0]), float(value[4]), float(slope[4])) == (0, 0, 1, 1)


@settings(deadline=None)
@given(st.floats(1e-6, 1e-2), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_duals_near_correlation_one_match_their_expansion_in_the_angle(angle, a, c):
    a, c = torch.tensor(a, dtype=torch.float64), torch.tensor(c, dtype=torch.float64)
    norm = torch.sqrt(a * c)
    value, slope = relu_duals(a, norm * math.cos(angle), c)
    # kappa0 = 1 - t / pi, kappa1 = 1 - t^2/2 + t^3 / (3 pi) + O(t^4); cos t is known to 1e-16, t to 1e-16 / t.
    assert float(slope) == pytest.approx(1 - angle / math.pi, abs=4e-16 / angle + 1e-15)
    assert float(value / norm) == pytest.approx(1 - angle**2 / 2 + angle**3 / (3 * math.pi), abs=angle**4 + 1e-15)


def test_duals_of_parallel_variables_ignore_rounding_and_those_of_zeros_are_finite():
    one = torch.tensor(1.0, dtype=torch.float64)
    for noise in (0.0, 2e-16, -2e-16, -4e-15):
        value, slope = relu_duals(one, one + noise, one)
        assert (float(value), float(slope)) == (pytest.approx(1, abs=5e-15), 1)
        assert [float(dual) for dual in relu_duals(one, -one - noise, one)] == [0, 0]
    value, slope = relu_duals(0 * one, 0 * one, one)
    assert float(value) == 0
    assert math.isfinite(float(slope))


# Contracts


class ConvolutionalContract(KernelContract):
    kernel = None

    def samples(self):
        x = images(num=8, height=4, width=3)
        x[1] = 0
        x[2] = -x[3]
        x[4, :, :2] = 0
        return x

    def block(self, x, x2=None):
        return self.kernel.block(x, x2)

    def diagonal(self, x):
        return self.kernel.diagonal(x)


class TestFlattenKernel(ConvolutionalContract):
    kernel = cntk()


class TestAveragedKernel(ConvolutionalContract):
    kernel = cntk(head="gap")


class TestFlattenCovariance(ConvolutionalContract):
    kernel = cntk(depth=2, filter_size=5, output="nngp")


class TestAveragedCovariance(ConvolutionalContract):
    kernel = cntk(depth=4, filter_size=1, head="gap", output="nngp")
