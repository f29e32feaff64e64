import math

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.gaussian_process.kernels import Matern
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.distances import (
    DispersalConfig,
    GaussianConfig,
    KerpleConfig,
    LaplaceConfig,
    MaternConfig,
)
from ntkpipe.workers.kernels.closed_form.distances import Angles, Distances
from ntkpipe.workers.kernels.closed_form.kerple import KerpleKernel
from ntkpipe.workers.kernels.closed_form.stationary import (
    DispersalKernel,
    GaussianKernel,
    LaplaceKernel,
    MaternKernel,
)

EVERYTHING = slice(None)
CONFIGS = {
    "gaussian": GaussianConfig(bandwidth=1.5),
    "laplace": LaplaceConfig(bandwidth=1.5),
    "laplace l1": LaplaceConfig(bandwidth=3.0, norm="l1"),
    "matern 1/2": MaternConfig(bandwidth=1.5, nu=0.5),
    "matern 3/2": MaternConfig(bandwidth=1.5, nu=1.5),
    "matern 5/2": MaternConfig(bandwidth=1.5, nu=2.5),
    "dispersal": DispersalConfig(bandwidth=1.5, exponent=0.7),
}
KERNELS = {
    GaussianConfig: GaussianKernel,
    LaplaceConfig: LaplaceKernel,
    MaternConfig: MaternKernel,
    DispersalConfig: DispersalKernel,
}
STATIONARY = {name: KERNELS[type(config)](config) for name, config in CONFIGS.items()}
KERPLE = {
    "log": KerpleKernel(KerpleConfig(variant="log", scale=2.0, rate=0.5)),
    "log of a power": KerpleKernel(KerpleConfig(variant="log", exponent=2.0)),
    "power": KerpleKernel(KerpleConfig(variant="power", scale=0.3, exponent=1.5)),
    "squares": KerpleKernel(KerpleConfig(variant="power", exponent=2.0)),
}


def vectors(num, dim, seed=0):
    return torch.randn(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def looped(x, y, formula):
    """The kernel one pair at a time, from differences."""
    entries = [[formula((p - q).tolist()) for q in y] for p in x]
    return torch.tensor(entries, dtype=torch.float64)


def length(difference):
    return math.sqrt(math.fsum(part * part for part in difference))


FORMULAS = {
    "gaussian": lambda d: math.exp(-(length(d) ** 2) / (2 * 1.5**2)),
    "laplace": lambda d: math.exp(-length(d) / 1.5),
    "laplace l1": lambda d: math.exp(-sum(map(abs, d)) / 3.0),
    "matern 1/2": lambda d: math.exp(-length(d) / 1.5),
    "matern 3/2": lambda d: (1 + math.sqrt(3) * length(d) / 1.5) * math.exp(-math.sqrt(3) * length(d) / 1.5),
    "matern 5/2": lambda d: (
        (1 + math.sqrt(5) * length(d) / 1.5 + 5 * length(d) ** 2 / (3 * 1.5**2))
        * math.exp(-math.sqrt(5) * length(d) / 1.5)
    ),
    "dispersal": lambda d: math.exp(-((length(d) / 1.5) ** 0.7)),
}


class Stationary(KernelContract):
    kernel = ""
    dim = 12

    def samples(self):
        x = vectors(8, self.dim)
        x[3] = 0
        x[4] = x[1] + 1e-9
        x[-1] = x[0]
        return x

    def block(self, x, x2=None):
        return STATIONARY[self.kernel].block(x, x2)

    def diagonal(self, x):
        return STATIONARY[self.kernel].diagonal(x)

    def test_every_entry_is_its_formula(self):
        x, y = self.samples(), vectors(5, self.dim, seed=1)
        expected = looped(x, y, FORMULAS[self.kernel])
        torch.testing.assert_close(self.block(x, y), expected, rtol=1e-12, atol=1e-15)

    def test_equal_points_have_exactly_one(self):
        x = self.samples()
        assert torch.equal(self.block(x).diagonal(), torch.ones(8, dtype=torch.float64))
        assert float(self.block(x, x)[0, -1]) == 1


class TestGaussian(Stationary):
    kernel = "gaussian"


class TestLaplace(Stationary):
    kernel = "laplace"


class TestLaplaceL1(Stationary):
    kernel = "laplace l1"


class TestMaternOneHalf(Stationary):
    kernel = "matern 1/2"


class TestMaternThreeHalves(Stationary):
    kernel = "matern 3/2"


class TestMaternFiveHalvesOfFewCoordinates(Stationary):
    kernel = "matern 5/2"
    dim = 3


class TestDispersal(Stationary):
    kernel = "dispersal"


class Kerple(KernelContract):
    positive = False
    variant = ""

    def samples(self):
        return torch.tensor([[0.0], [3.0], [1.0], [7.5], [-2.0], [100.0], [0.0]], dtype=torch.float64)

    def block(self, x, x2=None):
        return KERPLE[self.variant].block(x, x2)

    def diagonal(self, x):
        return KERPLE[self.variant].diagonal(x)

    def test_a_centred_matrix_is_positive_semi_definite(self):
        for x in (torch.arange(60), vectors(60, 2), torch.linspace(0, 1, 60) ** 3):
            matrix = self.block(x)
            centre = torch.eye(60, dtype=torch.float64) - 1 / 60
            smallest = float(torch.linalg.eigvalsh(centre @ matrix @ centre)[0])
            assert smallest >= -1e-10 * max(1.0, float(matrix.abs().max()))


class TestKerpleLog(Kerple):
    variant = "log"


class TestKerpleLogOfSquares(Kerple):
    variant = "log of a power"


class TestKerplePower(Kerple):
    variant = "power"


class TestKerpleSquares(Kerple):
    variant = "squares"


def test_kerple_is_the_published_formula_of_relative_positions():
    positions = torch.arange(6)
    gaps = (positions[:, None] - positions).abs().double()
    torch.testing.assert_close(KERPLE["log"].block(positions), -2.0 * torch.log(1 + 0.5 * gaps), rtol=1e-14, atol=0)
    torch.testing.assert_close(KERPLE["power"].block(positions), -0.3 * gaps**1.5, rtol=1e-14, atol=0)


@pytest.mark.parametrize("variant", ["log", "power"])
def test_a_kerple_matrix_is_indefinite_until_it_is_shifted_far_enough(variant):
    positions = torch.arange(12)
    raw = KerpleKernel(KerpleConfig(variant=variant)).block(positions)
    assert float(torch.linalg.eigvalsh(raw)[0]) < -1
    # A regular matrix of one negative eigenvalue becomes singular, and then positive, at -1 / (1^T K^-1 1).
    enough = -1 / float(torch.linalg.inv(raw).sum())
    smallest = [
        float(torch.linalg.eigvalsh(KerpleKernel(KerpleConfig(variant=variant, shift=shift)).block(positions))[0])
        for shift in (0.99 * enough, 1.01 * enough)
    ]
    assert smallest[0] < -1e-6
    assert smallest[1] > 0


def test_a_softmax_does_not_see_the_shift_of_kerple():
    positions = torch.arange(9)
    rows = [KerpleKernel(KerpleConfig(shift=shift)).block(positions).softmax(1) for shift in (0.0, 40.0)]
    torch.testing.assert_close(*rows, rtol=1e-12, atol=0)


def test_bandwidths_are_those_of_scikit_learn():
    x, y = vectors(7, 4).numpy(), vectors(5, 4, seed=1).numpy()
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    pairs = {
        "gaussian": rbf_kernel(x, y, gamma=1 / (2 * 1.5**2)),
        "laplace l1": laplacian_kernel(x, y, gamma=1 / 3.0),
        **{f"matern {2 * nu:.0f}/2": Matern(length_scale=1.5, nu=nu)(x, y) for nu in (0.5, 1.5, 2.5)},
    }
    for name, expected in pairs.items():
        np.testing.assert_allclose(STATIONARY[name].block(a, b).numpy(), expected, rtol=1e-11, err_msg=name)


def test_dispersal_joins_laplace_and_gaussian():
    x = vectors(9, 5)
    one = DispersalKernel(DispersalConfig(bandwidth=0.8, exponent=1.0)).block(x)
    torch.testing.assert_close(one, LaplaceKernel(LaplaceConfig(bandwidth=0.8)).block(x), rtol=1e-13, atol=0)
    two = DispersalKernel(DispersalConfig(bandwidth=0.8, exponent=2.0)).block(x)
    gaussian = GaussianKernel(GaussianConfig(bandwidth=0.8 / math.sqrt(2))).block(x)
    torch.testing.assert_close(two, gaussian, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dim", [3, 20])
def test_near_duplicates_far_from_the_origin_keep_their_digits(dim):
    x = 1e3 + vectors(40, dim)
    x[20:] = x[:20] + 1e-9 * vectors(20, dim, seed=1)
    expected = looped(x, x, lambda d: length(d) ** 2)
    found = Distances(x, None).squared(EVERYTHING, EVERYTHING)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
    assert float(expected[0, 20]) < 1e-15


def test_two_far_clusters_keep_their_inner_distances():
    cluster = 1e-6 * vectors(30, 16)
    x = torch.cat([cluster - 5, cluster + 5])
    expected = looped(x, x, lambda d: length(d) ** 2)
    torch.testing.assert_close(Distances(x, None).squared(EVERYTHING, EVERYTHING), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("num_near", [3, 200])
def test_few_and_many_near_pairs_give_the_same_distances(num_near):
    x = vectors(200, 10)
    x[:num_near] = x[0] + 1e-4 * vectors(num_near, 10, seed=2)
    found = Distances(x, x.clone()).squared(slice(0, 50), EVERYTHING)
    expected = looped(x[:50], x, lambda d: length(d) ** 2)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_a_matrix_of_many_strips_equals_its_parts():
    # 700 columns make strips of 93 rows.
    x = vectors(700, 9)
    whole = STATIONARY["matern 3/2"].block(x)
    assert torch.equal(whole, whole.T)
    torch.testing.assert_close(STATIONARY["matern 3/2"].block(x, x.clone()), whole, rtol=0, atol=1e-14)
    part = STATIONARY["matern 3/2"].block(x[100:110], x[300:650])
    torch.testing.assert_close(part, whole[100:110, 300:650], rtol=0, atol=1e-14)


def test_angles_keep_their_digits_near_zero_and_near_pi():
    base = torch.nn.functional.normalize(vectors(1, 24), dim=1)
    across = vectors(1, 24, seed=1)
    across = torch.nn.functional.normalize(across - (across @ base.T) * base, dim=1)
    sizes = torch.tensor([0, 1e-12, 1e-9, 1e-6, 1e-3, 0.1, 1.0, 2.0], dtype=torch.float64)
    turned = 3 * (torch.cos(sizes)[:, None] * base + torch.sin(sizes)[:, None] * across)
    angles = Angles(base, torch.cat([turned, -turned])).angles(EVERYTHING, EVERYTHING)[0]
    torch.testing.assert_close(angles[:8], sizes, rtol=1e-12, atol=2e-15)
    torch.testing.assert_close(angles[8:], math.pi - sizes, rtol=0, atol=1e-13)


def test_angles_of_vectors_in_a_narrow_cone_keep_their_digits():
    x = 1e4 + vectors(50, 20)
    units = [(row / row.norm()).tolist() for row in x]
    expected = [[2 * math.asin(length([a - b for a, b in zip(p, q, strict=True)]) / 2) for q in units] for p in units]
    found = Angles(x, None).angles(EVERYTHING, EVERYTHING)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert 1e-5 < float(found.max()) < 1e-3


def test_a_zero_vector_is_at_a_right_angle_to_everything():
    x = vectors(4, 11)
    x[2] = 0
    angles = Angles(x, None).angles(EVERYTHING, EVERYTHING)
    assert torch.equal(angles[2], torch.full((4,), math.pi / 2, dtype=torch.float64))
    assert torch.equal(angles[:, 2], angles[2])


def test_angles_do_not_depend_on_lengths_that_overflow_when_squared():
    x = vectors(6, 10)
    scales = torch.tensor([1e-200, 1e200, 1.0, 1e-300, 1e150, 3.0], dtype=torch.float64)[:, None]
    reference = Angles(x, None).angles(EVERYTHING, EVERYTHING)
    torch.testing.assert_close(Angles(scales * x, None).angles(EVERYTHING, EVERYTHING), reference, rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12),
    st.floats(-1e3, 1e3),
    st.sampled_from(sorted(STATIONARY)),
    st.integers(0, 1000),
)
def test_stationary_kernels_do_not_change_when_all_points_move(dim, move, name, seed):
    x = vectors(6, dim, seed)
    torch.testing.assert_close(STATIONARY[name].block(x + move), STATIONARY[name].block(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(STATIONARY))
def test_bandwidths_beyond_all_measure_give_zeros_and_ones(name):
    kernel, section = type(STATIONARY[name]), CONFIGS[name]
    x = vectors(5, 10)
    narrow, wide = (kernel(section.model_copy(update={"bandwidth": width})).block(x) for width in (1e-250, 1e250))
    assert torch.equal(narrow, torch.eye(5, dtype=torch.float64))
    assert torch.equal(wide, torch.ones(5, 5, dtype=torch.float64))


def test_samples_of_any_shape_and_type_are_taken_as_vectors():
    images = vectors(5, 12).reshape(5, 3, 2, 2)
    kernel = STATIONARY["gaussian"]
    assert torch.equal(kernel.block(images), kernel.block(images.reshape(5, 12)))
    numbers = torch.arange(4)
    assert torch.equal(kernel.block(numbers), kernel.block(numbers[:, None].double()))


def test_no_samples_give_an_empty_matrix():
    x = vectors(3, 12)
    for kernel in (*STATIONARY.values(), *KERPLE.values()):
        assert kernel.block(x[:0]).shape == (0, 0)
        assert kernel.block(x[:0], x).shape == (0, 3)
        assert kernel.block(x, x[:0]).shape == (3, 0)
        assert kernel.diagonal(x[:0]).shape == (0,)


@pytest.mark.parametrize("kernel", [*STATIONARY.values(), *KERPLE.values()])
def test_samples_that_are_no_vectors_of_one_space_are_refused(kernel):
    x = vectors(3, 4)
    with pytest.raises(ConfigError, match="4 and 5 coordinates"):
        kernel.block(x, vectors(2, 5))
    with pytest.raises(ConfigError, match="no coordinates"):
        kernel.block(x[:, :0])
    x[1, 2] = float("nan")
    with pytest.raises(ConfigError, match="sample 1 "):
        kernel.block(x)


@pytest.mark.parametrize(
    ("section", "options", "text"),
    [
        (GaussianConfig, {"bandwidth": 0}, "greater than 0"),
        (LaplaceConfig, {"bandwidth": float("inf")}, "finite"),
        (LaplaceConfig, {"norm": "l3"}, "'l1' or 'l2'"),
        (MaternConfig, {"nu": 2}, "use 0.5, 1.5 or 2.5"),
        (DispersalConfig, {"exponent": 2.1}, "less than or equal to 2"),
        (DispersalConfig, {"exponent": 0}, "greater than 0"),
        (KerpleConfig, {"exponent": 3}, "less than or equal to 2"),
        (KerpleConfig, {"variant": "power", "rate": 2.0}, "no meaning for variant = 'power'"),
        (KerpleConfig, {"shift": -1}, "greater than or equal to 0"),
    ],
)
def test_options_that_define_no_kernel_are_refused(section, options, text):
    with pytest.raises(ValidationError, match=text):
        section(**options)
