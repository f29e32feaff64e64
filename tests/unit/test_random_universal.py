import math

import numpy as np
import pytest
import torch
from contracts.random_features import RandomFeaturesContract
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.special import erf

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import UniversalFeaturesConfig
from ntkpipe.workers.kernels.random_features.base import signed_gram
from ntkpipe.workers.kernels.random_features.universal import UniversalFeatures, fitted_bundle, spectrum

FUNCTIONS = {
    "cosine": np.cos,
    "sine": np.sin,
    "gaussian": lambda t: np.exp(-(t**2) / 2),
    "sinc": lambda t: np.sinc(t / np.pi),
    "erf": erf,
    "exp": np.exp,
}

# Density of the frequencies on (0, inf), and c(s), of the functions whose variance is integrated numerically.
SPECTRA = {
    "gaussian": (lambda s: math.sqrt(2 / math.pi) * math.exp(-(s**2) / 2), lambda s: 1, 12),
    "sinc": (lambda s: 1, lambda s: 1, 1),
}


class UniversalContract(RandomFeaturesContract):
    size = 32
    function = "cosine"
    scale = 1.3
    offset = 0.4
    coupling = "iid"

    def samples(self):
        return 0.5 * super().samples()  # the longer samples are, the longer the tails of their estimates

    @property
    def positive(self):
        return self.make(0, 4).num_negative == 0

    def make(self, seed, size):
        return UniversalFeatures(
            UniversalFeaturesConfig(
                dim=size,
                seed=seed,
                function=self.function,
                scale=self.scale,
                offset=self.offset,
                coupling=self.coupling,
            )
        )

    def exact(self, x):
        return FUNCTIONS[self.function](self.scale * (x @ x.T).numpy() + self.offset)

    def squares(self, x):
        """|v|^2 of v = x + x', the phase of the square at frequency one, both (N, N)."""
        inner = self.scale * (x @ x.T).numpy()
        norms = np.diag(inner)[:, None] + np.diag(inner)[None]
        return norms + 2 * inner, norms + 4 * inner + 2 * self.offset

    def test_half_of_the_features_count_negatively(self):
        assert self.make(0, 10).num_negative == (0 if self.function == "exp" else 5)


class TestCosine(UniversalContract):
    def variance(self, x):
        lengths, phases = self.squares(x)
        return ((np.exp(lengths) + np.cos(phases)) / 2 - self.exact(x) ** 2) / (self.size / 2)


class TestSine(UniversalContract):
    function = "sine"

    def variance(self, x):
        lengths, phases = self.squares(x)
        return ((np.exp(lengths) - np.cos(phases)) / 2 - self.exact(x) ** 2) / (self.size / 2)


class IntegratedContract(UniversalContract):
    def variance(self, x):
        density, modulus, end = SPECTRA[self.function]
        lengths, phases = self.squares(x)

        def moment(length, phase):
            return quad(
                lambda s: density(s) * modulus(s) ** 2 * (math.exp(s * length) + math.cos(s * phase)) / 2, 0, end
            )[0]

        return (np.vectorize(moment)(lengths, phases) - self.exact(x) ** 2) / (self.size / 2)


class TestGaussian(IntegratedContract):
    function = "gaussian"


class TestSinc(IntegratedContract):
    function = "sinc"


class TestErf(UniversalContract):
    function = "erf"
    num_seeds = 1000


class TestExp(UniversalContract):
    function = "exp"
    size = 16

    def variance(self, x):
        lengths, _ = self.squares(x)
        norms = self.scale * x.square().sum(dim=1).numpy()
        second = np.exp(2 * lengths - norms[:, None] - norms[None] + 2 * self.offset)
        return (second - self.exact(x) ** 2) / self.size


class TestOrthogonalCosine(UniversalContract):
    coupling = "orthogonal"


@pytest.mark.parametrize("function", ["cosine", "sine", "gaussian", "sinc", "erf"])
def test_the_spectrum_of_a_function_gives_the_function(function):
    drawn = spectrum(function, 0, 40_000)
    frequencies, moduli, angle = drawn.frequencies_M, drawn.moduli_M, drawn.angle
    for t in (-2.0, -0.3, 0.0, 0.7, 3.0):
        terms = moduli * torch.cos(frequencies * t + angle)
        error = float(terms.std()) / math.sqrt(len(terms))
        assert abs(float(terms.mean()) - FUNCTIONS[function](t)) <= 4 * error + 1e-12


def test_the_product_of_two_features_has_the_published_mean_at_one_half():
    # E exp(a g.x - a^2 |x|^2 / 2) exp(a g.w - a^2 |w|^2 / 2) = exp(a^2 <x, w>), a = 1/2.
    x, w = torch.tensor([[0.6, -0.2, 1.0]]).double(), torch.tensor([[0.3, 0.9, 0.4]]).double()
    feature_map = UniversalFeatures(UniversalFeaturesConfig(function="exp", scale=0.25, dim=40_000))
    estimate = signed_gram(feature_map.features(x), feature_map.features(w), 0)
    assert float(estimate) == pytest.approx(math.exp(0.25 * float(x @ w.T)), rel=0.02)


def test_a_bundled_layer_estimates_the_layer_without_bias_and_with_variance_one_over_m():
    generator = torch.Generator().manual_seed(0)
    x = 0.25 * torch.randn(3, 4, dtype=torch.float64, generator=generator)
    weights = 0.25 * torch.randn(5, 4, dtype=torch.float64, generator=generator)
    biases = torch.randn(5, dtype=torch.float64, generator=generator)
    for function in ("sine", "gaussian", "exp"):
        exact = FUNCTIONS[function]((1.5 * x @ weights.T + 0.2 + biases).numpy())
        spreads = []
        for dim in (20, 80):
            # Features are independent of each other: a large map is 600 small ones, each times sqrt(1 / 600).
            config = UniversalFeaturesConfig(function=function, scale=1.5, offset=0.2, dim=600 * dim)
            feature_map = UniversalFeatures(config)
            parts = 1 if function == "exp" else 2
            features = feature_map.features(x).view(3, parts, 600, dim // parts)
            bundles = feature_map.bundle(weights, biases).view(parts, 600, dim // parts, 5)
            estimates = 600 * torch.einsum("npsk, pskm -> snm", features, bundles).numpy()
            errors = estimates.std(axis=0) / math.sqrt(600)
            assert (np.abs(estimates.mean(axis=0) - exact) < 4.5 * errors).all()
            spreads.append(estimates.var(axis=0).mean())
        assert 3 < spreads[0] / spreads[1] < 5.3


def test_a_bundle_without_biases_is_the_signed_features_of_the_weights():
    weights = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    feature_map = UniversalFeatures(UniversalFeaturesConfig(function="sine", offset=0.3, dim=12))
    features = feature_map.features(weights)
    torch.testing.assert_close(feature_map.bundle(weights), torch.cat((features[:, :6], -features[:, 6:]), dim=1).T)


def test_a_fitted_bundle_is_the_ridge_solution_and_beats_the_unbiased_one_on_its_samples():
    generator = torch.Generator().manual_seed(0)
    x, weights = (0.5 * torch.randn(num, 4, dtype=torch.float64, generator=generator) for num in (200, 3))
    feature_map = UniversalFeatures(UniversalFeaturesConfig(function="sine", dim=40))
    features, targets = feature_map.features(x), torch.sin(x @ weights.T)
    fitted = fitted_bundle(features, targets, ridge=0.01)
    gradient = features.T @ (features @ fitted - targets) + 0.01 * fitted
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    error = (features @ fitted - targets).square().mean()
    assert float(error) < 0.1 * float((features @ feature_map.bundle(weights) - targets).square().mean())


def test_the_estimate_at_zero_is_the_function_of_the_offset():
    feature_map = UniversalFeatures(UniversalFeaturesConfig(function="sine", offset=0.7, dim=8))
    zero = feature_map.features(torch.zeros(2, 3))
    torch.testing.assert_close(signed_gram(zero, zero, 4), torch.full((2, 2), math.sin(0.7)).double())


def test_sequences_are_flattened_with_the_norm_of_all_of_their_coordinates():
    x = torch.randn(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    feature_map = UniversalFeatures(UniversalFeaturesConfig(dim=8))
    assert torch.equal(feature_map.features(x), feature_map.features(x.flatten(1)))


def test_biases_of_another_number_of_outputs_are_refused():
    with pytest.raises(ConfigError, match=r"shape \(5,\)"):
        UniversalFeatures(UniversalFeaturesConfig(dim=8)).bundle(torch.ones(5, 2), torch.ones(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 5}, "even"),
        ({"function": "relu"}, "cosine"),
        ({"scale": 0}, "greater than 0"),
        ({"offset": math.nan}, "finite"),
        ({"coupling": "simplex"}, "orthogonal"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        UniversalFeaturesConfig(**options)


def test_real_features_may_be_odd_in_number():
    assert UniversalFeatures(UniversalFeaturesConfig(function="exp", dim=5)).features(torch.ones(2, 3)).shape == (2, 5)
