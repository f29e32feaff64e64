import math

import numpy as np
import pytest
import torch
from contracts.random_features import RandomFeaturesContract, coupled_variance, distances, pair_moment, sums
from pydantic import ValidationError
from scipy.special import hyp1f1

from ntkpipe.configs.kernels.random_features import PositiveFeaturesConfig
from ntkpipe.workers.kernels.random_features.couplings import coupled_normals
from ntkpipe.workers.kernels.random_features.positive import PositiveFeatures


class PositiveContract(RandomFeaturesContract):
    size = 16
    coupling = "iid"
    of = "gaussian"
    bandwidth = 1.2

    def make(self, seed, size):
        config = PositiveFeaturesConfig(
            dim=size, seed=seed, coupling=self.coupling, of=self.of, bandwidth=self.bandwidth
        )
        return PositiveFeatures(config)

    def samples(self):
        return 0.3 * super().samples()  # the longer samples are, the longer the tails of their estimates

    def exact(self, x):
        x = x / self.bandwidth
        if self.of == "softmax":
            return np.exp((x @ x.T).numpy())
        return np.exp(-(distances(x) ** 2) / 2)

    def variance(self, x):
        x = x / self.bandwidth
        norms = x.square().sum(dim=1).numpy()
        damping = np.exp(-(2 if self.of == "gaussian" else 1) * (norms[:, None] + norms[None]))
        squares = sums(x) ** 2
        pair = pair_moment(self.coupling, 4, squares, oscillating=False)
        return damping * coupled_variance(np.exp(2 * squares), np.exp(squares / 2), pair, 4, self.size)

    def test_no_estimate_is_ever_negative(self, estimates):
        assert estimates.min() > 0


class TestIndependent(PositiveContract):
    def test_the_law_of_the_variance_is_the_published_one(self):
        x = self.samples() / self.bandwidth
        norms = x.square().sum(dim=1).numpy()
        law = np.exp(2 * sums(x) ** 2 - 2 * norms[:, None] - 2 * norms[None]) - np.exp(-(distances(x) ** 2))
        np.testing.assert_allclose(self.variance(self.samples()), law / self.size, rtol=1e-12)


class TestOrthogonal(PositiveContract):
    coupling = "orthogonal"


class TestSimplex(PositiveContract):
    coupling = "simplex"


class TestSimplexPlus(PositiveContract):
    coupling = "simplex_plus"
    num_seeds = 400

    def variance(self, x):
        return None


class TestSoftmax(PositiveContract):
    of = "softmax"


class TestSoftmaxOfASimplex(PositiveContract):
    of = "softmax"
    coupling = "simplex"


def block_estimates(coupling, num_blocks=4000):
    """Estimates of one block of eight frequencies for unit vectors of cosine -0.85, and their exact mean."""
    x = torch.zeros(2, 8, dtype=torch.float64)
    x[0, 0], x[1, 0], x[1, 1] = 1, -0.85, math.sqrt(1 - 0.85**2)
    frequencies = coupled_normals(coupling, 5, 0, 8 * num_blocks, 8)
    features = (frequencies @ x.T - 1).exp()
    return features.prod(dim=1).view(num_blocks, 8).mean(dim=1), math.exp(-1.85)


def test_the_better_frequencies_cancel_the_smaller_the_error():
    errors = {}
    for coupling in ("iid", "orthogonal", "simplex", "simplex_plus"):
        estimates, exact = block_estimates(coupling)
        assert abs(float(estimates.mean()) - exact) < 4 * float(estimates.std()) / math.sqrt(len(estimates))
        errors[coupling] = float((estimates - exact).square().mean())
    assert errors["simplex_plus"] < 0.9 * errors["simplex"]
    assert errors["simplex"] < 0.3 * errors["orthogonal"]
    assert errors["orthogonal"] < errors["iid"]
    # The exact laws: 0.00108 and 0.00099, with 0.00019 the published order of magnitude of a simplex.
    squares = 2 - 2 * 0.85
    iid = math.exp(-4) * (math.exp(2 * squares) - math.exp(squares)) / 8
    orthogonal = iid + math.exp(-4) * 7 / 8 * (hyp1f1(8, 4, squares / 2) - math.exp(squares))
    assert errors["iid"] == pytest.approx(iid, rel=0.15)
    assert errors["orthogonal"] == pytest.approx(orthogonal, rel=0.15)
    assert errors["simplex"] == pytest.approx(0.00019, rel=0.3)


def test_the_exact_laws_of_the_couplings_are_ordered_for_all_lengths_of_sums():
    squares = np.linspace(0.01, 6, 25)
    for width in (2, 3, 8, 32):
        iid, orthogonal, simplex = (
            pair_moment(coupling, width, squares, oscillating=False) for coupling in ("iid", "orthogonal", "simplex")
        )
        assert (orthogonal < iid).all()
        assert (simplex < orthogonal).all()


@pytest.mark.parametrize(("of", "share"), [("gaussian", 1), ("softmax", 0.5)])
def test_features_are_exponentials_of_projections_less_a_share_of_the_norm(of, share):
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = PositiveFeatures(PositiveFeaturesConfig(of=of, dim=6, seed=2, bandwidth=2, coupling="simplex")).features(
        x
    )
    frequencies = coupled_normals("simplex", 2, 0, 6, 4)
    for sample, row in zip(x / 2, features, strict=True):
        for frequency, feature in zip(frequencies, row, strict=True):
            exponent = float(frequency @ sample) - share * float(sample @ sample)
            assert float(feature) == pytest.approx(math.exp(exponent) / math.sqrt(6))


def test_features_of_zero_are_all_equal():
    features = PositiveFeatures(PositiveFeaturesConfig(dim=12)).features(torch.zeros(1, 4))
    torch.testing.assert_close(features, torch.full((1, 12), 1 / math.sqrt(12), dtype=torch.float64))


def test_far_samples_have_no_features_rather_than_infinite_ones():
    features = PositiveFeatures(PositiveFeaturesConfig(dim=12)).features(torch.full((1, 4), 1e3))
    assert torch.equal(features, torch.zeros(1, 12, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"coupling": "antithetic"}, {"of": "laplace"}, {"bandwidth": -1}, {"dim": 0}])
def test_options_that_do_not_exist_are_refused(options):
    with pytest.raises(ValidationError):
        PositiveFeaturesConfig(**options)
