import itertools
import math

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.integrate import dblquad
from scipy.special import eval_gegenbauer, eval_legendre
from sklearn.metrics.pairwise import cosine_similarity, polynomial_kernel

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.dot_products import ArcCosineConfig, CosineConfig, PolynomialConfig, ZonalConfig
from ntkpipe.workers.kernels.closed_form.dot_products import ArcCosineKernel, CosineKernel, PolynomialKernel
from ntkpipe.workers.kernels.closed_form.zonal import ZonalKernel, degree_eigenvalues, gegenbauer, multiplicity

COSINE = CosineKernel(CosineConfig())
ARC_COSINES = [ArcCosineKernel(ArcCosineConfig(order=order)) for order in (0, 1, 2)]
KAPPA = {
    "kappa0": ({-1.0: 0.0, -0.5: 1 / 3, 0.0: 0.5, 0.5: 2 / 3, 1.0: 1.0}, ARC_COSINES[0]),
    "kappa1": (
        {-1.0: 0.0, -0.5: 0.10899778, 0.0: 0.31830989, 0.5: 0.60899778, math.sqrt(0.5): 0.75540916, 1.0: 1.0},
        ARC_COSINES[1],
    ),
}


def vectors(num, dim, seed=0):
    return torch.randn(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit_pair(cosine):
    """Two unit vectors of the plane; those of cosine 1 and -1 are equal and opposite to the last bit."""
    other = [cosine, math.sqrt(1 - cosine**2)]
    return torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([other], dtype=torch.float64)


class DotProduct(KernelContract):
    kernel = None

    def samples(self):
        x = vectors(8, 11)
        x[2] = -x[1]
        x[3] = x[1] * 2.5
        x[4] = x[5] + 1e-10
        x[6] = 0
        x[-1] = x[0]
        return x

    def block(self, x, x2=None):
        return self.kernel.block(x, x2)

    def diagonal(self, x):
        return self.kernel.diagonal(x)

    def limit(self, matrix):
        return 1e-12 * max(1.0, float(matrix.abs().max()))


class TestPolynomial(DotProduct):
    kernel = PolynomialKernel(PolynomialConfig(degree=3, scale=0.5, offset=0.25))


class TestLinear(DotProduct):
    kernel = PolynomialKernel(PolynomialConfig(degree=1, offset=0))


class TestCosine(DotProduct):
    kernel = COSINE


class TestArcCosineOfOrderZero(DotProduct):
    kernel = ARC_COSINES[0]


class TestArcCosineOfOrderOne(DotProduct):
    kernel = ARC_COSINES[1]


class TestArcCosineOfOrderTwo(DotProduct):
    kernel = ARC_COSINES[2]


class TestZonal(DotProduct):
    kernel = ZonalKernel(ZonalConfig(eigenvalues=(0.3, 0.1, 0, 0.02, 1e-3)))

    def samples(self):
        x = super().samples()
        x[6] = 1
        return x


def test_polynomials_and_cosines_are_those_of_scikit_learn():
    x, y = vectors(7, 4), vectors(5, 4, seed=1)
    kernel = PolynomialKernel(PolynomialConfig(degree=3, scale=0.5, offset=0.25))
    expected = polynomial_kernel(x.numpy(), y.numpy(), degree=3, gamma=0.5, coef0=0.25)
    np.testing.assert_allclose(kernel.block(x, y).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(COSINE.block(x, y).numpy(), cosine_similarity(x.numpy(), y.numpy()), atol=1e-14)


def test_an_even_power_of_a_negative_base_is_positive_and_an_odd_one_negative():
    x, y = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[-1.5]], dtype=torch.float64)
    for degree, expected in ((2, 9.0), (3, -27.0)):
        assert float(PolynomialKernel(PolynomialConfig(degree=degree, offset=0)).block(x, y)) == expected


def test_cosines_stay_within_one_and_are_zero_for_zero_vectors():
    x = vectors(60, 3)
    x[30:] = x[:30] * 7
    x[5] = 0
    matrix = COSINE.block(x, x)
    assert float(matrix.abs().max()) <= 1
    assert not matrix[5].any()
    assert torch.equal(COSINE.block(x)[5], torch.zeros(60, dtype=torch.float64))
    assert torch.equal(COSINE.diagonal(x), (torch.arange(60) != 5).double())


def test_cosines_do_not_depend_on_lengths_that_overflow_when_squared():
    x = vectors(3, 5)
    scales = torch.tensor([[1e-200], [1e200], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(COSINE.block(scales * x), COSINE.block(x), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", sorted(KAPPA))
def test_arc_cosine_kernels_of_unit_vectors_have_the_known_values(name):
    values, kernel = KAPPA[name]
    for cosine, expected in values.items():
        assert float(kernel.block(*unit_pair(cosine))) == pytest.approx(expected, abs=5e-9)
    assert float(kernel.block(*unit_pair(1.0))) == pytest.approx(1, abs=1e-15)
    assert float(kernel.block(*unit_pair(-1.0))) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("angle", [0.3, 1.2, 2.4])
def test_arc_cosine_kernels_are_the_means_over_random_weights(order, angle):
    def integrand(turn, radius):
        first, second = math.cos(turn), math.cos(turn - angle)
        return radius * math.exp(-(radius**2) / 2) * (2 * radius**2 * first * second) ** order * 2 ** (1 - order)

    # Both units are on for directions between angle - pi / 2 and pi / 2.
    mean, _ = dblquad(integrand, 0, 14, angle - math.pi / 2, math.pi / 2, epsabs=1e-12)
    x, y = unit_pair(math.cos(angle))
    expected = mean / (2 * math.pi) * (2 * 0.5) ** order
    assert float(ARC_COSINES[order].block(2 * x, 0.5 * y)) == pytest.approx(expected, rel=1e-9)


def test_zero_vectors_have_the_documented_arc_cosine_values():
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    for order, corner in ((0, 0.5), (1, 0.0), (2, 0.0)):
        matrix = ARC_COSINES[order].block(x)
        assert matrix[0].tolist() == pytest.approx([corner, corner], abs=1e-16)
        assert ARC_COSINES[order].diagonal(x)[0] == corner


@pytest.mark.parametrize("gap", [1e-12, 1e-9, 1e-6, 1e-3])
def test_kappa0_loses_no_digits_near_equal_and_near_opposite_vectors(gap):
    # 1 - kappa0 = t / pi: from the cosine, 1 - t^2 / 2, nothing would be left of the smaller angles.
    base, across = torch.eye(20, dtype=torch.float64)[:2]
    near = math.cos(gap) * base + math.sin(gap) * across
    missing = 1 - float(ARC_COSINES[0].block(base[None], near[None]))
    assert missing == pytest.approx(gap / math.pi, abs=2e-16)
    assert float(ARC_COSINES[0].block(base[None], -near[None])) == pytest.approx(gap / math.pi, abs=4e-16)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2), st.integers(1, 20), st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_arc_cosine_kernels_scale_like_the_lengths_to_their_order(order, dim, seed, first, second):
    x, y = vectors(3, dim, seed), vectors(4, dim, seed + 1)
    scaled = ARC_COSINES[order].block(first * x, second * y)
    expected = (first * second) ** order * ARC_COSINES[order].block(x, y)
    largest = (first * second * float(x.norm(dim=1).max() * y.norm(dim=1).max())) ** order
    torch.testing.assert_close(scaled, expected, rtol=1e-9, atol=1e-13 * largest)
    assert float(scaled.min()) >= 0


def test_the_numbers_of_harmonics_are_those_of_circle_and_sphere():
    assert [multiplicity(degree, 2) for degree in range(5)] == [1, 2, 2, 2, 2]
    assert [multiplicity(degree, 3) for degree in range(5)] == [1, 3, 5, 7, 9]
    assert [multiplicity(degree, 5) for degree in range(4)] == [1, 5, 14, 30]


@pytest.mark.parametrize("dim", [2, 3, 4, 9, 100])
def test_the_recurrence_gives_gegenbauer_polynomials_that_are_one_at_one(dim):
    cosines = torch.linspace(-1, 1, 41, dtype=torch.float64)
    for degree, values in zip(range(25), gegenbauer(cosines, dim), strict=False):
        if dim == 2:
            expected = np.cos(degree * np.arccos(cosines.numpy()))
        elif dim == 3:
            expected = eval_legendre(degree, cosines.numpy())
        else:
            order = (dim - 2) / 2
            expected = eval_gegenbauer(degree, order, cosines.numpy()) / eval_gegenbauer(degree, order, 1.0)
        np.testing.assert_allclose(values.numpy(), expected, atol=1e-12)


def kappa0(cosines):
    return 1 - torch.arccos(cosines) / math.pi


def kappa1(cosines):
    return cosines * kappa0(cosines) + torch.sqrt(1 - cosines**2) / math.pi


def one_layer(cosines):
    """The tangent kernel of a layer of ReLUs without biases, on unit vectors."""
    return cosines * kappa0(cosines) + kappa1(cosines)


def circle_eigenvalue(degree):
    if degree == 1:
        return 0.5
    return 0.0 if degree % 2 else 2 * (degree**2 + 3) / (math.pi**2 * (degree**2 - 1) ** 2)


def test_the_tangent_kernel_of_one_relu_layer_has_the_known_spectrum_on_the_circle():
    found = degree_eigenvalues(one_layer, 2, 30)
    expected = [circle_eigenvalue(degree) for degree in range(30)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-13)
    assert float(found[0]) == pytest.approx(6 / math.pi**2, abs=1e-13)


def test_the_spectrum_of_equispaced_points_is_that_of_the_circle_with_its_aliases():
    num = 12
    angles = torch.arange(num, dtype=torch.float64) * (2 * math.pi / num)
    circle = torch.stack([torch.cos(angles), torch.sin(angles)], 1)
    eigenvalues = degree_eigenvalues(one_layer, 2, 400)
    found = torch.linalg.eigvalsh(
        ZonalKernel(ZonalConfig(eigenvalues=tuple(eigenvalues.clamp(min=0).tolist()))).block(circle)
    )
    aliases = [
        sum(circle_eigenvalue(abs(wave + num * turn)) for turn in range(-40, 41) if abs(wave + num * turn) < 400)
        for wave in range(num)
    ]
    np.testing.assert_allclose(found.numpy() / num, sorted(aliases), atol=1e-12)


@pytest.mark.parametrize("dim", [2, 3, 6, 10])
def test_eigenvalues_times_multiplicities_add_up_to_the_value_at_one(dim):
    def kappa(cosines):
        return torch.exp(cosines - 1) + 0.25 * cosines**3

    eigenvalues = degree_eigenvalues(kappa, dim, 30)
    total = math.fsum(float(value) * multiplicity(degree, dim) for degree, value in enumerate(eigenvalues))
    assert total == pytest.approx(1.25, rel=1e-10)


@pytest.mark.parametrize("dim", [2, 5, 40, 1000])
def test_a_cube_of_the_cosine_is_shared_by_degrees_one_and_three(dim):
    eigenvalues = degree_eigenvalues(lambda cosines: cosines**3, dim, 4)
    shares = [float(value) * multiplicity(degree, dim) for degree, value in enumerate(eigenvalues)]
    assert shares == pytest.approx([0, 3 / (dim + 2), 0, (dim - 1) / (dim + 2)], abs=1e-11)


def test_a_constant_and_a_linear_kernel_have_one_eigenvalue_each():
    for dim in (2, 3, 17):
        ones = degree_eigenvalues(torch.ones_like, dim, 4)
        np.testing.assert_allclose(ones.numpy(), [1, 0, 0, 0], atol=1e-13)
        linear = degree_eigenvalues(lambda cosines: cosines, dim, 4)
        np.testing.assert_allclose(linear.numpy(), [0, 1 / dim, 0, 0], atol=1e-13)


@pytest.mark.parametrize("dim", [2, 3, 7])
def test_a_zonal_kernel_with_the_spectrum_of_a_kernel_is_that_kernel(dim):
    def kappa(cosines):
        return torch.exp(2 * (cosines - 1))

    eigenvalues = tuple(degree_eigenvalues(kappa, dim, 25).clamp(min=0).tolist())
    x = vectors(9, dim)
    units = torch.nn.functional.normalize(x, dim=1)
    found = ZonalKernel(ZonalConfig(eigenvalues=eigenvalues)).block(5 * x)
    torch.testing.assert_close(found, kappa(units @ units.T), rtol=0, atol=1e-12)


def test_a_zonal_gram_matrix_of_many_random_points_has_about_the_degree_eigenvalues():
    eigenvalues = (0.5, 0.2, 0.05)
    points = vectors(900, 3, seed=4)
    spectrum = torch.linalg.eigvalsh(ZonalKernel(ZonalConfig(eigenvalues=eigenvalues)).block(points)).flip(0) / 900
    expected = [value for degree, value in enumerate(eigenvalues) for _ in range(multiplicity(degree, 3))]
    np.testing.assert_allclose(spectrum[:9].numpy(), expected, rtol=0.2)
    assert float(spectrum[9:].abs().max()) < 1e-12


def test_zonal_kernels_of_many_coordinates_do_not_overflow():
    # 4000 coordinates have more than 10^308 harmonics of degree 400.
    tiny = (0.0,) * 400 + (5e-324,)
    x = vectors(3, 40)
    with_few = ZonalKernel(ZonalConfig(eigenvalues=(0.5, 0.25 / 40, *tiny))).block(x)
    units = torch.nn.functional.normalize(x, dim=1)
    torch.testing.assert_close(with_few, 0.5 + 0.25 * units @ units.T, rtol=0, atol=1e-12)
    wide = vectors(2, 4000)
    matrix = ZonalKernel(ZonalConfig(eigenvalues=(0.5, *(0.0,) * 400))).block(wide)
    assert torch.equal(matrix, torch.full((2, 2), 0.5, dtype=torch.float64))


def test_a_zonal_kernel_refuses_vectors_without_a_direction():
    kernel = ZonalKernel(ZonalConfig(eigenvalues=(1.0, 0.5)))
    x = vectors(4, 3)
    x[2] = 0
    for call in (lambda: kernel.block(x), lambda: kernel.block(x[:2], x), lambda: kernel.diagonal(x)):
        with pytest.raises(ConfigError, match="sample 2 is a zero vector"):
            call()
    with pytest.raises(ConfigError, match="one coordinate"):
        kernel.block(vectors(4, 1))


def test_no_samples_give_an_empty_matrix():
    x = vectors(3, 4)
    kernels = [COSINE, *ARC_COSINES, TestPolynomial.kernel, TestZonal.kernel]
    for kernel, (rows, columns) in itertools.product(kernels, ((0, 3), (3, 0))):
        assert kernel.block(x[:rows], x[:columns]).shape == (rows, columns)
        assert kernel.block(x[:0]).shape == (0, 0)
        assert kernel.diagonal(x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("section", "options", "text"),
    [
        (PolynomialConfig, {"degree": 0}, "greater than or equal to 1"),
        (PolynomialConfig, {"degree": 1.5}, "valid integer"),
        (PolynomialConfig, {"offset": -0.1}, "greater than or equal to 0"),
        (PolynomialConfig, {"scale": 0}, "greater than 0"),
        (ArcCosineConfig, {"order": 3}, "0, 1 or 2"),
        (ZonalConfig, {"eigenvalues": ()}, "at least 1"),
        (ZonalConfig, {"eigenvalues": (1.0, -0.1)}, "greater than or equal to 0"),
        (ZonalConfig, {"eigenvalues": (0.0, 0.0)}, "all eigenvalues are 0"),
    ],
)
def test_options_that_define_no_kernel_are_refused(section, options, text):
    with pytest.raises(ValidationError, match=text):
        section(**options)
