"""What every random feature map must satisfy, and the laws of its variance where they are known."""

import functools
from abc import abstractmethod

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1, hyp1f1, roots_genlaguerre

from contracts.kernels import KernelContract
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures, signed_gram

SIGMAS = 4.5
"""Largest deviation of a mean over seeds, in standard errors. Seeds are fixed, so that a test never fails by chance."""


class RandomFeaturesContract(KernelContract):
    """Inherited by the test class of one map with one set of options.

    ``unbiased`` is whether the mean over seeds is the exact kernel; ``size`` what the variance falls with, of a map
    whose estimates are averaged over ``num_seeds`` seeds.
    """

    unbiased = True
    size = 16
    num_seeds = 500

    @abstractmethod
    def make(self, seed: int, size: int) -> AbstractRandomFeatures:
        """The map of a seed."""

    @abstractmethod
    def exact(self, x: torch.Tensor) -> np.ndarray:
        """The kernel that is estimated, written independently."""

    def variance(self, x: torch.Tensor) -> np.ndarray | None:
        """The exact variance of an entry at ``size``; None where it is not known."""
        return None

    def samples(self) -> torch.Tensor:
        x = 0.5 * torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        x[1] = 0
        x[5] = x[0]
        return x

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        feature_map = self.make(0, self.size)
        left = feature_map.features(x)
        if x2 is None:
            gram = signed_gram(left, left, feature_map.num_negative)
            return (gram + gram.T) / 2
        return signed_gram(left, feature_map.features(x2), feature_map.num_negative)

    def draw(self, size: int, num_seeds: int, first: int = 0) -> np.ndarray:
        """Estimates of the matrix of many seeds, (seeds, N, N)."""
        x = self.samples()
        found = []
        for seed in range(first, first + num_seeds):
            feature_map = self.make(seed, size)
            features = feature_map.features(x)
            found.append(signed_gram(features, features, feature_map.num_negative))
        return torch.stack(found).numpy()

    @pytest.fixture
    def estimates(self) -> np.ndarray:
        return _estimates(type(self))

    def test_the_mean_over_seeds_is_the_exact_kernel(self, estimates):
        if not self.unbiased:
            pytest.skip("biased; its bias has a test of its own")
        exact = self.exact(self.samples())
        errors = estimates.std(axis=0, ddof=1) / np.sqrt(len(estimates))
        deviations = np.abs(estimates.mean(axis=0) - exact)
        assert (deviations <= SIGMAS * errors + 1e-12).all(), deviations / (errors + 1e-15)
        assert errors.max() < 0.1 * np.abs(exact).max(), "too few seeds to see a bias of a tenth"

    def test_the_variance_over_seeds_has_its_law(self, estimates):
        law = self.variance(self.samples())
        if law is None:
            pytest.skip("no exact law")
        centred = estimates - estimates.mean(axis=0)
        measured = (centred**2).sum(axis=0) / (len(estimates) - 1)
        errors = np.sqrt(np.maximum((centred**4).mean(axis=0) - measured**2, 0) / len(estimates))
        assert (np.abs(measured - law) <= SIGMAS * errors + 1e-12).all(), measured / law
        noisy = law > 1e-6
        assert np.median(errors[noisy] / law[noisy]) < 0.25, "too few seeds to see a wrong law"

    def test_the_variance_falls_as_one_over_the_size(self, estimates):
        larger = self.draw(4 * self.size, self.num_seeds // 2, first=100_000)
        noisy = estimates.var(axis=0) > 1e-12
        ratio = np.median(estimates.var(axis=0)[noisy] / larger.var(axis=0)[noisy])
        assert 2.8 < ratio < 5.7

    def test_maps_of_different_seeds_are_independent(self, estimates):
        first, second = estimates[0::2], estimates[1::2]
        deviations = first.std(axis=0) * second.std(axis=0)
        covariance = ((first - first.mean(axis=0)) * (second - second.mean(axis=0))).mean(axis=0)
        noisy = deviations > 1e-12
        assert noisy.any()
        assert np.abs(covariance[noisy] / deviations[noisy]).max() < SIGMAS / np.sqrt(len(first))

    def test_features_are_finite_numbers_in_double_precision_of_the_promised_shape(self):
        feature_map = self.make(0, self.size)
        features = feature_map.features(self.samples())
        assert features.dtype == torch.float64
        assert features.shape == (6, feature_map.dim)
        assert 0 <= feature_map.num_negative < feature_map.dim
        assert torch.isfinite(features).all()
        assert not features.requires_grad

    def test_features_of_a_sample_do_not_depend_on_the_others(self):
        x = self.samples()
        together = self.make(0, self.size).features(x)
        for part in (slice(0, 1), slice(4, 5), slice(2, 5), slice(0, 0)):
            alone = self.make(0, self.size).features(x[part])
            torch.testing.assert_close(alone, together[part], rtol=1e-12, atol=1e-13)

    def test_equal_samples_have_equal_features(self):
        x = self.samples()
        features = self.make(1, self.size).features(torch.cat((x, x)))
        torch.testing.assert_close(features[:6], features[6:], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(features[0], features[5], rtol=1e-12, atol=1e-13)

    def test_a_seed_always_gives_the_same_features(self):
        x = self.samples()
        feature_map = self.make(2, self.size)
        first = feature_map.features(x)
        assert torch.equal(first, feature_map.features(x))
        assert torch.equal(first, self.make(2, self.size).features(x))
        assert not torch.equal(first, self.make(3, self.size).features(x))


@functools.cache
def _estimates(suite: type[RandomFeaturesContract]) -> np.ndarray:
    """The estimates that all tests of a suite look at."""
    return suite().draw(suite.size, suite.num_seeds)


def distances(x: torch.Tensor) -> np.ndarray:
    """Euclidean distances of all pairs."""
    return np.linalg.norm(x.numpy()[:, None] - x.numpy()[None], axis=2)


def sums(x: torch.Tensor) -> np.ndarray:
    """|x + x'| of all pairs."""
    return np.linalg.norm(x.numpy()[:, None] + x.numpy()[None], axis=2)


def coupled_variance(second, mean, pair, width: int, num: int):
    """Variance of a mean of ``num`` numbers in blocks of ``width``; ``pair`` is the mean product of two of a block."""
    return (second - mean**2) / num + (width - 1) * (pair - mean**2) / num


def pair_moment(coupling: str, width: int, squares, *, oscillating: bool):
    """E exp((w_i + w_j) . v), or E cos(w_i . v) cos(w_j . v), of two frequencies of a block; ``squares`` is |v|^2.

    A sum of two frequencies of length r has a uniform direction, over which exp(w . v) averages to
    0F1(d / 2; r^2 |v|^2 / 4), and cos(w . v) to the same of -r^2 |v|^2 / 4. Lengths of orthogonal frequencies add up as
    squares; their chi-squared law gives 1F1. Those of a simplex are integrated over by Gauss-Laguerre quadrature.
    """
    sign = -1 if oscillating else 1
    if coupling == "iid":
        return np.exp(sign * squares)
    if coupling == "orthogonal":
        return hyp1f1(width, width / 2, sign * squares / 2)
    nodes, weights = roots_genlaguerre(40, width / 2 - 1)
    lengths, weights = np.sqrt(2 * nodes), weights / weights.sum()
    total = np.zeros_like(squares)
    for first, first_weight in zip(lengths, weights, strict=True):
        for second, second_weight in zip(lengths, weights, strict=True):
            straight, crossed = first**2 + second**2, 2 * first * second / (width - 1)
            values = hyp0f1(width / 2, sign * squares * (straight - crossed) / 4)
            if oscillating:
                values = (values + hyp0f1(width / 2, sign * squares * (straight + crossed) / 4)) / 2
            total += first_weight * second_weight * values
    return total
