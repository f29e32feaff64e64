import math

import numpy as np
import pytest
import torch
from contracts.random_features import RandomFeaturesContract
from pydantic import ValidationError

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import MultilayerFeaturesConfig
from ntkpipe.workers.kernels.random_features.multilayer import MultilayerFeatures


def kappa1(u):
    u = np.clip(u, -1, 1)
    return u * (1 - np.arccos(u) / np.pi) + np.sqrt(1 - u**2) / np.pi


def limit(x, depth):
    x = x.numpy()
    norms = np.linalg.norm(x, axis=1)
    scale = norms[:, None] * norms[None]
    u = (x @ x.T) / np.where(scale == 0, 1, scale)
    for _ in range(depth):
        u = kappa1(u)
    return scale * u


class OneLayerContract(RandomFeaturesContract):
    size = 16
    depth = 1

    def make(self, seed, size):
        return MultilayerFeatures(MultilayerFeaturesConfig(dim=size, seed=seed, depth=self.depth))

    def exact(self, x):
        return limit(x, self.depth)


class TestOneLayer(OneLayerContract):
    def variance(self, x):
        norms = np.linalg.norm(x.numpy(), axis=1)
        scale = norms[:, None] * norms[None]
        angles = np.arccos(np.clip((x @ x.T).numpy() / np.where(scale == 0, 1, scale), -1, 1))
        second = 3 * np.sin(angles) * np.cos(angles) + (np.pi - angles) * (1 + 2 * np.cos(angles) ** 2)
        return scale**2 * (2 * second / np.pi - kappa1(np.cos(angles)) ** 2) / self.size


class TestThreeLayers(OneLayerContract):
    unbiased = False
    depth = 3


def entries_of_pairs(cosine, depth, dim, num_pairs, num_seeds, width=None):
    """Estimates of K(x, x') and K(x, x) at one cosine, for many rotated pairs and seeds; (seeds, pairs) each."""
    generator = torch.Generator().manual_seed(1)
    first = torch.nn.functional.normalize(torch.randn(num_pairs, 6, dtype=torch.float64, generator=generator), dim=1)
    other = torch.randn(num_pairs, 6, dtype=torch.float64, generator=generator)
    other = torch.nn.functional.normalize(other - (other * first).sum(dim=1, keepdim=True) * first, dim=1)
    second = cosine * first + math.sqrt(1 - cosine**2) * other
    crossed, own = [], []
    for seed in range(num_seeds):
        config = MultilayerFeaturesConfig(dim=dim, depth=depth, seed=seed, width=width)
        features = MultilayerFeatures(config).features(torch.cat((first, second)))
        crossed.append((features[:num_pairs] * features[num_pairs:]).sum(dim=1))
        own.append(features[:num_pairs].square().sum(dim=1))
    return torch.stack(crossed), torch.stack(own)


@pytest.mark.parametrize(("cosine", "expected"), [(-0.5, 0.10899778), (0.0, 0.31830989), (0.5, 0.60899778)])
def test_one_layer_estimates_the_golden_values(cosine, expected):
    assert kappa1(cosine) == pytest.approx(expected, abs=1e-8)
    crossed, _ = entries_of_pairs(cosine, depth=1, dim=2048, num_pairs=50, num_seeds=20)
    assert float(crossed.mean()) == pytest.approx(expected, abs=0.01)


def test_opposite_samples_have_no_common_features_in_one_layer():
    x = torch.randn(1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = MultilayerFeatures(MultilayerFeaturesConfig(dim=64)).features(torch.cat((x, -x)))
    assert float(features[0] @ features[1]) == 0


def test_the_diagonal_is_unbiased_at_every_depth_and_its_variance_has_its_law():
    _, own = entries_of_pairs(0.0, depth=3, dim=40, width=20, num_pairs=20, num_seeds=600)
    means, variances = own.mean(dim=0), own.var(dim=0)
    law = (1 + 5 / 20) ** 2 * (1 + 5 / 40) - 1
    # Pairs share weights: each of them alone is a test at its own standard error.
    assert float(((means - 1).abs() / (law / 600) ** 0.5).max()) < 4
    assert float(variances.mean()) == pytest.approx(law, rel=0.15)


def test_two_layers_are_biased_off_the_diagonal_by_one_over_the_width():
    exact = float(kappa1(kappa1(np.array(-0.9))))
    biases = []
    for width in (8, 32):
        crossed, own = entries_of_pairs(-0.9, depth=2, dim=64, width=width, num_pairs=200, num_seeds=800)
        # The diagonal has mean one: taking a part of it away removes noise, and leaves the bias.
        per_seed = (crossed - exact * own).mean(dim=1)
        biases.append(float(per_seed.mean()))
        assert abs(biases[-1]) > 5 * float(per_seed.std()) / math.sqrt(800), "too few seeds to see the bias"
    assert max(biases) < 0
    assert 2.5 < biases[0] / biases[1] < 5


def test_the_error_of_deep_features_falls_as_the_square_root_of_the_width():
    exact = float(kappa1(kappa1(kappa1(np.array(0.5)))))
    errors = []
    for dim in (32, 128, 512):
        crossed, _ = entries_of_pairs(0.5, depth=3, dim=dim, num_pairs=20, num_seeds=60)
        errors.append(float((crossed - exact).square().mean()) ** 0.5)
    assert 1.6 < errors[0] / errors[1] < 2.6
    assert 1.6 < errors[1] / errors[2] < 2.6


def test_features_scale_with_their_sample():
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    feature_map = MultilayerFeatures(MultilayerFeaturesConfig(dim=16, depth=4))
    torch.testing.assert_close(feature_map.features(3 * x), 3 * feature_map.features(x))
    assert not feature_map.features(torch.zeros(2, 5)).any()


def test_the_first_layer_does_not_depend_on_how_deep_the_map_is():
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    deep = MultilayerFeatures(MultilayerFeaturesConfig(dim=8, depth=2, width=8))
    weights = deep._weights(5, x.device)
    hidden = (x @ weights[0].T).clamp_min(0) * math.sqrt(2 / 8)
    torch.testing.assert_close(MultilayerFeatures(MultilayerFeaturesConfig(dim=8)).features(x), hidden)
    torch.testing.assert_close(deep.features(x), (hidden @ weights[1].T).clamp_min(0) * math.sqrt(2 / 8))


def test_samples_without_coordinates_are_refused():
    with pytest.raises(ConfigError, match="shape"):
        MultilayerFeatures(MultilayerFeaturesConfig(dim=8)).features(torch.ones(3, 0))


@pytest.mark.parametrize("options", [{"depth": 0}, {"width": 0}, {"dim": 0}, {"activation": "gelu"}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        MultilayerFeaturesConfig(**options)
