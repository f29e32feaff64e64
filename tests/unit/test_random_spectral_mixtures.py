import math
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from contracts.random_features import RandomFeaturesContract
from pydantic import ValidationError
from scipy.stats import multivariate_normal

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import FourierFeaturesConfig, SpectralMixtureFeaturesConfig
from ntkpipe.workers.kernels.random_features.fourier import FourierFeatures
from ntkpipe.workers.kernels.random_features.spectral_mixture import (
    SpectralMixture,
    SpectralMixtureFeatures,
    fit_mixture,
    negative_log_likelihood,
    relative_error,
)

WEIGHTS = (0.7, 0.4)
MEANS = ((0.5, 0.0, -1.0, 0.3), (-0.2, 1.5, 0.0, 0.0))
SCALES = ((0.5, 1.0, 1.5, 0.7), (0.3, 0.3, 0.9, 1.2))


def fourier_kernel(x, weights=WEIGHTS, means=MEANS, scales=SCALES):
    delta = x.numpy()[:, None] - x.numpy()[None]
    total = np.zeros(delta.shape[:2])
    for weight, mean, scale in zip(weights, means, scales, strict=True):
        total += weight * np.cos(delta @ np.array(mean)) * np.exp(-((delta * np.array(scale)) ** 2).sum(axis=2) / 2)
    return total


def positive_kernel(x):
    x = x.numpy()
    total = np.zeros((len(x), len(x)))
    for weight, mean, scale in zip(WEIGHTS, MEANS, SCALES, strict=True):
        for i, j in np.ndindex(total.shape):
            plus = x[i] + x[j]
            exponent = plus @ np.array(mean) + ((plus * np.array(scale)) ** 2).sum() / 2
            total[i, j] += weight * np.exp(exponent - (x[i] @ x[i] + x[j] @ x[j]) / 2)
    return total


def config(**options):
    return SpectralMixtureFeaturesConfig(**{"weights": WEIGHTS, "means": MEANS, "scales": SCALES, "dim": 16, **options})


class MixtureContract(RandomFeaturesContract):
    size = 16
    options: ClassVar[dict] = {}

    def make(self, seed, size):
        return SpectralMixtureFeatures(config(dim=size, seed=seed, **self.options))

    def exact(self, x):
        return fourier_kernel(x)


class TestFourier(MixtureContract):
    def variance(self, x):
        total, num = 0, self.size // 4
        for part in range(2):
            parts = ([1.0], MEANS[part : part + 1], SCALES[part : part + 1])
            twice, once = fourier_kernel(2 * x, *parts), fourier_kernel(x, *parts)
            total += WEIGHTS[part] ** 2 * ((1 + twice) / 2 - once**2) / num
        return total

    def test_the_diagonal_is_the_sum_of_the_weights_in_every_draw(self, estimates):
        assert np.abs(np.diagonal(estimates, axis1=1, axis2=2) - 1.1).max() < 1e-12


class TestPositive(MixtureContract):
    options: ClassVar = {"features": "positive"}

    def samples(self):
        return 0.3 * super().samples()

    def exact(self, x):
        return positive_kernel(x)

    def variance(self, x):
        # E exp(2 w . (x + x')) is the moment of one component at twice the sum, without its damping.
        total, num, x = 0, self.size // 2, x.numpy()
        plus = x[:, None] + x[None]
        damping = np.exp(-((x[:, None] ** 2).sum(axis=2) + (x[None] ** 2).sum(axis=2)))
        for weight, mean, scale in zip(WEIGHTS, MEANS, SCALES, strict=True):
            shift, spread = plus @ np.array(mean), ((plus * np.array(scale)) ** 2).sum(axis=2)
            total += weight**2 * damping * (np.exp(2 * shift + 2 * spread) - np.exp(2 * shift + spread)) / num
        return total


class TestFastfood(MixtureContract):
    options: ClassVar = {"frequencies": "fastfood"}
    num_seeds = 300


def test_one_component_at_zero_gives_the_features_of_the_gaussian_kernel():
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for frequencies in ("dense", "fastfood"):
        single = SpectralMixtureFeatures(
            config(weights=[1], means=[[0] * 4], scales=[[0.5] * 4], seed=3, frequencies=frequencies)
        )
        gaussian = FourierFeatures(FourierFeaturesConfig(bandwidth=2, dim=16, seed=3, frequencies=frequencies))
        torch.testing.assert_close(single.features(x), gaussian.features(x), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"features": "positive"}, {"frequencies": "fastfood"}])
def test_gradients_of_weights_means_and_scales_are_finite_differences(options):
    x = 0.5 * torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixture = SpectralMixture(config(**options))
    parameters = dict(mixture.named_parameters())
    assert set(parameters) == {"log_weights_C", "means_CD", "log_scales_CD"}

    def features(*values):
        return torch.func.functional_call(mixture, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(
        features, tuple(value.detach().clone().requires_grad_() for value in mixture.parameters())
    )


def test_a_section_made_of_a_module_gives_the_features_of_the_module():
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixture = SpectralMixture(config(name="learned", seed=5))
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter += 0.1
    section = mixture.to_config()
    assert (section.name, section.seed, section.dim) == ("learned", 5, 16)
    torch.testing.assert_close(section.means, tuple(tuple(m + 0.1 for m in row) for row in MEANS))
    torch.testing.assert_close(SpectralMixtureFeatures(section).features(x), mixture(x).detach())


@pytest.mark.parametrize("num", [3, 16, 30])
def test_the_negative_log_likelihood_is_that_of_scipy(num):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(num, 4, dtype=torch.float64, generator=generator), torch.randn(num, generator=generator).double()
    features = SpectralMixture(config())(x).detach()
    covariance = features @ features.T + 0.3 * torch.eye(num)
    expected = -multivariate_normal(np.zeros(num), covariance.numpy()).logpdf(y.numpy()) / num
    assert float(negative_log_likelihood(features, y, 0.3)) == pytest.approx(expected)


def test_a_mixture_learns_the_frequency_of_its_labels():
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.rand(80, 1, dtype=torch.float64, generator=generator)
    y = torch.sin(4 * x[:, 0]) + 0.05 * torch.randn(80, dtype=torch.float64, generator=generator)
    mixture = SpectralMixture(config(weights=[1], means=[[3.0]], scales=[[1.0]], dim=40))
    losses = fit_mixture(mixture, x, partial(negative_log_likelihood, targets_N=y, noise=0.01), steps=150)
    assert losses[-1] < losses[0] - 0.2
    learned = mixture.to_config()
    assert abs(learned.means[0][0]) == pytest.approx(4, abs=0.4)
    assert learned.scales[0][0] < 0.7


def test_a_mixture_learns_a_kernel():
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.from_numpy(fourier_kernel(x, [1.5], [[2.0, 0.0]], [[0.3, 0.8]]))
    mixture = SpectralMixture(config(weights=[1], means=[[1.5, 0.3]], scales=[[1.0, 1.0]], dim=200))
    losses = fit_mixture(mixture, x, partial(relative_error, kernel_NN=target), steps=200)
    assert len(losses) == 201
    assert losses[-1] < 0.15 * losses[0]
    learned = mixture.to_config()
    assert learned.weights[0] == pytest.approx(1.5, abs=0.2)
    assert learned.means[0] == pytest.approx((2, 0), abs=0.2)
    assert learned.scales[0] == pytest.approx((0.3, 0.8), abs=0.2)


def test_learning_is_deterministic():
    x = torch.randn(10, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = [
        fit_mixture(SpectralMixture(config()), x, partial(relative_error, kernel_NN=torch.eye(10).double()), steps=5)
        for _ in range(2)
    ]
    assert losses[0] == losses[1]


def test_components_share_no_noise():
    twins = config(weights=[1, 1], means=[[0] * 4] * 2, scales=[[1] * 4] * 2)
    features = SpectralMixtureFeatures(twins).features(torch.eye(4))
    assert not torch.allclose(features[:, :8], features[:, 8:])


def test_samples_of_another_dimension_are_refused():
    with pytest.raises(ConfigError, match="3 coordinates, but means and scales have 4"):
        SpectralMixtureFeatures(config()).features(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ()}, "at least 1"),
        ({"weights": (1,)}, "1 weights, 2 means and 2 scales"),
        ({"means": ((1, 2, 3, 4), (1, 2, 3))}, "lengths"),
        ({"weights": (1, 0)}, "positive"),
        ({"scales": ((1, 2, 3, 4), (1, 2, -3, 4))}, "positive"),
        ({"means": ((1, 2, 3, math.nan), (1, 2, 3, 4))}, "finite"),
        ({"means": ((), ()), "scales": ((), ())}, "dimension of a sample"),
        ({"dim": 18}, "multiple of 4"),
        ({"dim": 17, "features": "positive"}, "multiple of 2"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        config(**options)
