import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from contracts.random_features import RandomFeaturesContract, coupled_variance, distances, pair_moment
from pydantic import ValidationError
from scipy.special import gamma, kv

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import FourierFeaturesConfig
from ntkpipe.workers.kernels.random_features.fourier import FourierFeatures


def gaussian(d):
    return np.exp(-(d**2) / 2)


def matern(nu):
    def kernel(d):
        s = np.sqrt(2 * nu) * np.where(d == 0, 1.0, d)
        return np.where(d == 0, 1.0, 2 ** (1 - nu) / gamma(nu) * s**nu * kv(nu, s))

    return kernel


class FourierContract(RandomFeaturesContract):
    size = 16
    bandwidth = 0.8
    options: ClassVar[dict] = {}

    def make(self, seed, size):
        return FourierFeatures(FourierFeaturesConfig(dim=size, seed=seed, bandwidth=self.bandwidth, **self.options))

    def profile(self, d):
        raise NotImplementedError

    def exact(self, x):
        return self.profile(distances(x) / self.bandwidth)

    def variance(self, x):
        d = distances(x) / self.bandwidth
        return ((1 + self.profile(2 * d)) / 2 - self.profile(d) ** 2) / (self.size / 2)

    def test_the_diagonal_is_one_in_every_draw(self, estimates):
        assert np.abs(np.diagonal(estimates, axis1=1, axis2=2) - 1).max() < 1e-12


class TestGaussian(FourierContract):
    profile = staticmethod(gaussian)

    def test_the_law_of_the_variance_is_the_published_one(self):
        d = distances(self.samples()) / self.bandwidth
        np.testing.assert_allclose(
            self.variance(self.samples()), (1 - gaussian(d) ** 2) ** 2 / self.size, rtol=1e-10, atol=1e-15
        )


class TestLaplace(FourierContract):
    options: ClassVar = {"of": "laplace"}

    def profile(self, d):
        return np.exp(-d)


class TestLaplaceInTheTaxicabNorm(FourierContract):
    options: ClassVar = {"of": "laplace", "norm": "l1"}

    def exact(self, x):
        return np.exp(-np.abs(x.numpy()[:, None] - x.numpy()[None]).sum(axis=2) / self.bandwidth)

    def variance(self, x):
        k = self.exact(x)
        return ((1 + k**2) / 2 - k**2) / (self.size / 2)  # k(2 delta) = k(delta)^2


class TestMatern(FourierContract):
    options: ClassVar = {"of": "matern", "nu": 1.5}

    def profile(self, d):
        return (1 + math.sqrt(3) * d) * np.exp(-math.sqrt(3) * d)


class TestMaternOfAnySmoothness(FourierContract):
    options: ClassVar = {"of": "matern", "nu": 0.8}
    profile = staticmethod(matern(0.8))


class CoupledContract(FourierContract):
    """A Gaussian kernel with whole blocks: four coordinates, eight frequencies."""

    profile = staticmethod(gaussian)

    def variance(self, x):
        d = distances(x) / self.bandwidth
        pair = pair_moment(self.options["coupling"], 4, d**2, oscillating=True)
        return coupled_variance((1 + gaussian(2 * d)) / 2, gaussian(d), pair, 4, self.size // 2)


class TestOrthogonal(CoupledContract):
    options: ClassVar = {"coupling": "orthogonal"}


class TestSimplex(CoupledContract):
    options: ClassVar = {"coupling": "simplex"}


class TestSimplexPlus(CoupledContract):
    options: ClassVar = {"coupling": "simplex_plus"}
    num_seeds = 300

    def variance(self, x):
        return None


class TestOrthogonalMatern(FourierContract):
    options: ClassVar = {"of": "matern", "nu": 2.5, "coupling": "orthogonal"}
    num_seeds = 300
    profile = staticmethod(matern(2.5))

    def variance(self, x):
        return None


class TestFastfood(FourierContract):
    options: ClassVar = {"frequencies": "fastfood"}
    num_seeds = 300
    profile = staticmethod(gaussian)

    def variance(self, x):
        return None


class TestFastfoodOfFilledUpSamples(TestFastfood):
    """Five coordinates in blocks of eight."""

    options: ClassVar = {"frequencies": "fastfood", "of": "matern", "nu": 1.5}

    def samples(self):
        x = super().samples()
        return torch.cat((x, x[:, :1] * 2), dim=1)

    def profile(self, d):
        return matern(1.5)(d)


def mean_square_error(num_blocks=600, **options):
    """Over blocks of eight frequencies and pairs of samples at distances of 0.4 to 2.2 in eight dimensions."""
    x = torch.nn.functional.normalize(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    x = x * torch.linspace(0.3, 1.3, 8, dtype=torch.float64).unsqueeze(1)
    exact = torch.from_numpy(gaussian(distances(x)))
    # Blocks are independent: a large map is many of one block, each times sqrt(1 / their number).
    features = FourierFeatures(FourierFeaturesConfig(dim=16 * num_blocks, **options)).features(x)
    blocks = features.view(8, 2, num_blocks, 8)
    return float((num_blocks * torch.einsum("npbk, mpbk -> bnm", blocks, blocks) - exact).square().mean())


def test_orthogonal_frequencies_are_better_than_independent_ones():
    assert mean_square_error(coupling="orthogonal") < 0.8 * mean_square_error()


def test_simplex_frequencies_are_better_than_independent_ones_but_worse_than_orthogonal_ones():
    simplex = mean_square_error(coupling="simplex")
    assert mean_square_error(coupling="orthogonal") < simplex < 0.95 * mean_square_error()


def error_at_distance_one(num_blocks, frequencies, directions):
    """The mean square error of estimates from one block of 16 frequencies each, over blocks and directions."""
    x = torch.nn.functional.normalize(directions, dim=1)
    feature_map = FourierFeatures(FourierFeaturesConfig(dim=32 * num_blocks, frequencies=frequencies))
    products = feature_map.features(x) * feature_map.features(0 * x[:1])
    estimates = num_blocks * products.view(len(x), 2, num_blocks, 16).sum((1, 3))
    return float((estimates - math.exp(-0.5)).square().mean())


def test_fastfood_frequencies_are_up_to_twice_as_noisy_as_independent_ones():
    directions = torch.randn(32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ratio = error_at_distance_one(200, "fastfood", directions) / error_at_distance_one(400, "dense", directions)
    assert 1.2 < ratio < 2.1


def test_fastfood_frequencies_are_less_noisy_than_independent_ones_along_a_coordinate_axis():
    axis = torch.zeros(1, 16, dtype=torch.float64)
    axis[0, 3] = 1
    assert error_at_distance_one(200, "fastfood", axis) < 0.4 * error_at_distance_one(400, "dense", axis)


def test_a_matern_kernel_of_smoothness_one_half_is_the_laplace_kernel():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    laplace = FourierFeatures(FourierFeaturesConfig(of="laplace", dim=10)).features(x)
    half = FourierFeatures(FourierFeaturesConfig(of="matern", nu=0.5, dim=10)).features(x)
    assert torch.equal(laplace, half)


def test_the_bandwidth_is_a_unit_of_length():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wide = FourierFeatures(FourierFeaturesConfig(bandwidth=4.0, dim=10)).features(4 * x)
    torch.testing.assert_close(wide, FourierFeatures(FourierFeaturesConfig(dim=10)).features(x))


def test_images_are_vectors_of_pixels():
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    feature_map = FourierFeatures(FourierFeaturesConfig(dim=10))
    assert torch.equal(feature_map.features(x), feature_map.features(x.flatten(1)))


def test_samples_of_another_dimension_get_frequencies_of_their_own():
    feature_map = FourierFeatures(FourierFeaturesConfig(dim=10))
    feature_map.features(torch.ones(2, 3))
    assert torch.equal(
        feature_map.features(torch.ones(2, 5)),
        FourierFeatures(FourierFeaturesConfig(dim=10)).features(torch.ones(2, 5)),
    )


def test_the_first_independent_frequencies_of_more_features_are_those_of_fewer():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    few = FourierFeatures(FourierFeaturesConfig(dim=10)).features(x) * math.sqrt(5)
    many = FourierFeatures(FourierFeaturesConfig(dim=30)).features(x) * math.sqrt(15)
    torch.testing.assert_close(few[:, :5], many[:, :5])
    torch.testing.assert_close(few[:, 5:], many[:, 15:20])


@pytest.mark.parametrize("shape", [(), (4, 0), (4, 3, 0)])
def test_samples_without_coordinates_are_refused(shape):
    with pytest.raises(ConfigError, match="shape"):
        FourierFeatures(FourierFeaturesConfig(dim=10)).features(torch.ones(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 7}, "even"),
        ({"nu": 2.5}, "nu is an option of matern"),
        ({"of": "laplace", "nu": 0.5}, "nu is an option of matern"),
        ({"norm": "l1"}, "norm l1"),
        ({"of": "laplace", "norm": "l1", "coupling": "orthogonal"}, "rotational symmetry"),
        ({"of": "laplace", "norm": "l1", "frequencies": "fastfood"}, "rotational symmetry"),
        ({"of": "matern", "coupling": "simplex"}, "gaussian only"),
        ({"of": "laplace", "coupling": "simplex_plus"}, "gaussian only"),
        ({"coupling": "orthogonal", "frequencies": "fastfood"}, "coupling of their own"),
        ({"bandwidth": 0}, "greater than 0"),
        ({"bandwidth": math.inf}, "finite"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        FourierFeaturesConfig(**options)
