"""What random feature maps share: streams of random numbers, couplings, frequencies, and agreement of processes."""

import subprocess
import sys
from pathlib import Path

import feature_digests
import numpy as np
import pytest
import torch
from feature_digests import SECTIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats
from scipy.linalg import hadamard as dense_hadamard

from ntkpipe.configs.kernels.random_features import RandomFeaturesConfig
from ntkpipe.workers.hadamard import hadamard
from ntkpipe.workers.kernels.random_features.base import signed_gram
from ntkpipe.workers.kernels.random_features.couplings import (
    balanced_rows,
    coupled_normals,
    haar_rows,
    simplex_rows,
)
from ntkpipe.workers.kernels.random_features.fourier import FourierFeatures
from ntkpipe.workers.kernels.random_features.frequencies import FastfoodFrequencies
from ntkpipe.workers.kernels.random_features.multilayer import MultilayerFeatures
from ntkpipe.workers.kernels.random_features.positive import PositiveFeatures
from ntkpipe.workers.kernels.random_features.spectral_mixture import SpectralMixtureFeatures
from ntkpipe.workers.kernels.random_features.streams import SLICE_ENTRIES, Stream
from ntkpipe.workers.kernels.random_features.universal import UniversalFeatures

MAPS = {
    "fourier_features": FourierFeatures,
    "positive_features": PositiveFeatures,
    "spectral_mixture_features": SpectralMixtureFeatures,
    "universal_features": UniversalFeatures,
    "multilayer_features": MultilayerFeatures,
}


def test_another_process_computes_the_same_features():
    folder, threads = str(Path(feature_digests.__file__).parent), torch.get_num_threads()
    code = (
        f"import sys, torch; torch.set_num_threads({threads}); sys.path.insert(0, {folder!r}); "
        "import feature_digests; print(feature_digests.digest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == feature_digests.digest()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section["kind"])
def test_samples_in_single_precision_are_taken_as_they_are(section):
    config = TypeAdapter(RandomFeaturesConfig).validate_python(section)
    x = torch.arange(12, dtype=torch.float32).view(4, 3) / 7
    features = MAPS[config.kind](config).features(x)
    assert features.dtype == torch.float64
    assert torch.equal(features, MAPS[config.kind](config).features(x.double()))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section["kind"])
def test_sections_survive_a_round_trip_through_text_and_are_values(section):
    config = TypeAdapter(RandomFeaturesConfig).validate_python(section)
    again = TypeAdapter(RandomFeaturesConfig).validate_json(config.model_dump_json(exclude_unset=True))
    assert again == config
    assert type(again) is type(config)
    assert hash(again) == hash(config)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=4), st.integers(0, 6))
def test_fourier_estimates_of_any_samples_are_correlations(rows, which):
    options = [section for section in SECTIONS if section["kind"] == "fourier_features"]
    config = TypeAdapter(RandomFeaturesConfig).validate_python(options[which % len(options)])
    features = FourierFeatures(config).features(torch.tensor(rows, dtype=torch.float64))
    gram = features @ features.T
    assert float((gram.diagonal() - 1).abs().max()) < 1e-12
    assert float(gram.abs().max()) < 1 + 1e-12


def test_streams_are_pinned_because_stored_features_depend_on_them():
    stream = Stream(7, ("normals", 0))
    pinned = [
        float(stream.normals(2, 3)[1, 2]),
        float(stream.uniforms(torch.tensor([5]), 2)),
        float(stream.gammas(3, 2.5)[1]),
        float(stream.signs(9)[:5].sum()),
        stream.permutations(1, 6)[0].tolist(),
    ]
    assert pinned[:4] == pytest.approx([-1.5845835674318545, 0.10802681827029653, 2.220353949752264, -1.0])
    assert pinned[4] == [0, 3, 2, 5, 1, 4]


@pytest.mark.parametrize("shape", [0.05, 0.5, 0.8, 1.0, 1.5, 4.0, 100.0])
def test_gamma_numbers_have_the_distribution_of_scipy(shape):
    numbers = Stream(1, ("test",)).gammas(4000, shape).numpy()
    assert (numbers >= 0).all()
    assert stats.kstest(numbers, stats.gamma(shape).cdf).pvalue > 1e-3


def test_chi_numbers_are_lengths_of_normal_vectors():
    numbers = Stream(2, ("test",)).chis(4000, 7).numpy()
    assert stats.kstest(numbers, stats.chi(7).cdf).pvalue > 1e-3


def test_normal_and_uniform_numbers_and_signs_have_their_distributions():
    stream = Stream(3, ("test",))
    assert stats.kstest(stream.normals(1000, 5).flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    uniforms = stream.uniforms(torch.arange(5000)).numpy()
    assert stats.kstest(uniforms, stats.uniform.cdf).pvalue > 1e-3
    assert 0 < uniforms.min() < uniforms.max() < 1
    assert abs(float(stream.signs(10_000).sum())) < 400
    assert set(stream.signs(100).tolist()) == {-1.0, 1.0}


def test_permutations_are_permutations_and_uniform():
    orders = Stream(3, ("test",)).permutations(600, 3)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(3).expand(600, 3))
    counts = torch.unique(orders, dim=0, return_counts=True)[1]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert len(counts) == 6


def test_numbers_of_a_stream_do_not_depend_on_how_many_are_drawn():
    stream = Stream(4, ("test",))
    rows = SLICE_ENTRIES // 1000 + 7
    torch.testing.assert_close(stream.normals(rows, 1000)[-3:], stream.normals(3, 1000, rows - 3), rtol=0, atol=0)
    assert torch.equal(stream.gammas(50, 0.7), stream.gammas(90, 0.7)[:50])
    assert torch.equal(stream.signs(50), stream.signs(90)[:50])


def test_pairs_of_uniform_numbers_are_independent_and_the_first_are_those_drawn_alone():
    stream, positions = Stream(3, ("test",)), torch.arange(5000)
    first, second = stream.uniform_pairs(positions, 4)
    assert torch.equal(first, stream.uniforms(positions, 4))
    assert stats.kstest(second.numpy(), stats.uniform.cdf).pvalue > 1e-3
    assert stats.spearmanr(first.numpy(), second.numpy()).pvalue > 1e-3


def test_streams_of_other_seeds_and_parts_are_independent():
    numbers = torch.stack(
        [
            Stream(seed, parts).normals(2000, 1)[:, 0]
            for seed in (0, 1)
            for parts in (("a",), ("b",), ("a", 0), ("a", 1))
        ]
    )
    correlations = torch.corrcoef(numbers) - torch.eye(8, dtype=torch.float64)
    assert float(correlations.abs().max()) < 4.5 / np.sqrt(2000)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 30), st.sampled_from(["orthogonal", "simplex", "simplex_plus"]))
def test_blocks_of_any_dimension_and_number_are_what_their_coupling_says(width, num, coupling):
    vectors = coupled_normals(coupling, 0, 0, num, width)
    assert vectors.shape == (num, width)
    assert torch.isfinite(vectors).all()
    block = torch.nn.functional.normalize(vectors[:width], dim=1)
    gram = block @ block.T
    if coupling == "orthogonal" or width == 1:
        torch.testing.assert_close(gram, torch.eye(len(block), dtype=torch.float64))
    elif coupling == "simplex":
        expected = torch.full((width, width), -1 / (width - 1), dtype=torch.float64).fill_diagonal_(1)
        torch.testing.assert_close(gram, expected[: len(block), : len(block)])


@pytest.mark.parametrize("width", [2, 3, 8, 31])
def test_directions_of_a_simplex_sum_to_zero(width):
    rows = simplex_rows(haar_rows(Stream(0, ("test",)).normals(4 * width, width).view(4, width, width)))
    torch.testing.assert_close(rows.sum(dim=1), torch.zeros(4, width, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(rows.norm(dim=2), torch.ones(4, width, dtype=torch.float64))


@pytest.mark.parametrize("width", [3, 8, 31])
def test_balanced_vectors_keep_their_lengths_and_sum_to_as_little_as_these_allow(width):
    before = coupled_normals("simplex", 1, 0, 200 * width, width).view(200, width, width)
    after = coupled_normals("simplex_plus", 1, 0, 200 * width, width).view(200, width, width)
    lengths = before.norm(dim=2)
    torch.testing.assert_close(after.norm(dim=2), lengths)
    least = (2 * lengths.amax(dim=1) - lengths.sum(dim=1)).clamp_min(0)
    found = after.sum(dim=1).norm(dim=1)
    assert (found <= before.sum(dim=1).norm(dim=1) + 1e-12).all()
    assert float((found - least).quantile(0.95)) < 1e-6
    assert float((found - least).max()) < 0.01 * width


def test_a_vector_longer_than_all_others_together_is_opposed_by_all_of_them():
    rows = simplex_rows(haar_rows(Stream(0, ("test",)).normals(3, 3).view(1, 3, 3)))
    vectors = balanced_rows(rows * torch.tensor([10.0, 1, 2], dtype=torch.float64).view(1, 3, 1))
    assert float(vectors.sum(dim=1).norm()) == pytest.approx(7)


def test_balancing_commutes_with_rotations():
    rotation = haar_rows(Stream(1, ("test",)).normals(5, 5).view(1, 5, 5))[0]
    vectors = simplex_rows(haar_rows(Stream(0, ("test",)).normals(5, 5).view(1, 5, 5)))
    vectors = vectors * torch.tensor([0.5, 1, 2, 1, 3], dtype=torch.float64).view(1, 5, 1)
    torch.testing.assert_close(balanced_rows(vectors @ rotation), balanced_rows(vectors) @ rotation)


def test_orthogonal_blocks_are_uniform_rotations():
    rows = haar_rows(Stream(0, ("test",)).normals(3 * 6000, 3).view(6000, 3, 3))
    entries = rows.flatten(1)
    # Entries of a uniform rotation have mean 0, variance 1 / D, fourth moment 3 / (D (D + 2)), and no correlation.
    assert float(entries.mean(dim=0).abs().max()) < 4.5 * np.sqrt(1 / 3 / 6000)
    torch.testing.assert_close(entries.T @ entries / 6000, torch.eye(9).double() / 3, rtol=0, atol=0.025)
    torch.testing.assert_close((entries**4).mean(dim=0), torch.full((9,), 1 / 5).double(), rtol=0, atol=0.02)
    # E trace = 0 and E trace^2 = 1, and both signs of the determinant are as frequent.
    traces = rows.diagonal(dim1=1, dim2=2).sum(dim=1)
    assert abs(float(traces.mean())) < 0.06
    assert float(traces.square().mean()) == pytest.approx(1, abs=0.08)
    assert abs(float(torch.linalg.det(rows).mean())) < 0.06


@pytest.mark.parametrize("coupling", ["iid", "orthogonal", "simplex", "simplex_plus"])
def test_every_vector_of_a_block_alone_is_standard_normal(coupling):
    vectors = coupled_normals(coupling, 0, 0, 4 * 1500, 4).view(1500, 4, 4)
    for row in range(4):
        assert stats.kstest(vectors[:, row, 1].numpy(), stats.norm.cdf).pvalue > 1e-3
        assert stats.kstest(vectors[:, row].sum(dim=1).numpy() / 2, stats.norm.cdf).pvalue > 1e-3
        assert stats.kstest(vectors[:, row].norm(dim=1).numpy(), stats.chi(4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("coupling", ["iid", "orthogonal", "simplex", "simplex_plus"])
def test_the_first_vectors_of_a_longer_list_are_those_of_a_shorter_one(coupling):
    torch.testing.assert_close(coupled_normals(coupling, 0, 0, 40, 5)[:17], coupled_normals(coupling, 0, 0, 17, 5))


def test_orthogonal_vectors_fewer_than_their_dimension_need_no_whole_block():
    vectors = torch.nn.functional.normalize(coupled_normals("orthogonal", 0, 0, 3, 5000), dim=1)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("width", [1, 2, 5, 8])
def test_fastfood_vectors_alone_are_standard_normal(width):
    axes = torch.eye(width, dtype=torch.float64)
    # Blocks are drawn independently: each of them is a draw of its own.
    side = 1 << (width - 1).bit_length()
    vectors = FastfoodFrequencies(0, 0, 600 * side, width)(axes).T.reshape(600, side, width)
    for row in {0, side // 2, side - 1}:
        assert stats.kstest(vectors[:, row, 0].numpy(), stats.norm.cdf).pvalue > 1e-3
        assert stats.kstest(vectors[:, row].sum(dim=1).numpy() / np.sqrt(width), stats.norm.cdf).pvalue > 1e-3
        assert stats.kstest(vectors[:, row].norm(dim=1).numpy(), stats.chi(width).cdf).pvalue > 1e-3


def test_fastfood_vectors_are_the_product_of_their_factors():
    num, width, side = 11, 3, 4
    stream = {name: Stream(5, ("fastfood", 2, name)) for name in "BPGS"}
    signs, orders = stream["B"].signs(12).view(3, side), stream["P"].permutations(3, side)
    normals, lengths = stream["G"].normals(3, side), stream["S"].chis(12, side).view(3, side)
    transform = torch.from_numpy(dense_hadamard(side)).double()
    blocks = []
    for block in range(3):
        permutation = torch.eye(side, dtype=torch.float64)[orders[block]]
        factors = (lengths, normals, signs)
        s, g, b = (torch.diag(numbers[block]) for numbers in factors)
        blocks.append(s @ transform @ g @ permutation @ transform @ b / (2 * normals[block].norm()))
    found = FastfoodFrequencies(5, 2, num, width)(torch.eye(width, dtype=torch.float64)).T
    torch.testing.assert_close(found, torch.cat(blocks)[:num, :width])


@pytest.mark.parametrize("side", [1, 2, 8, 64, 128, 512])
def test_the_hadamard_transform_multiplies_by_the_matrix_of_scipy(side):
    x = torch.randn(3, 2, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    transform = torch.from_numpy(dense_hadamard(side)).double()
    torch.testing.assert_close(hadamard(x), x @ transform)
    torch.testing.assert_close(hadamard(x[0, 0].float()), (x[0, 0] @ transform).float())
    assert hadamard(x[:0]).shape == (0, 2, side)


def test_the_hadamard_transform_can_be_differentiated_even_if_it_was_used_without_gradients_before():
    with torch.inference_mode():
        hadamard(torch.ones(1, 32, dtype=torch.float64))
    x = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(hadamard, (x,))


def test_the_last_features_count_negatively():
    left, right = torch.tensor([[1.0, 2, 3]]), torch.tensor([[4.0, 5, 6], [1, 1, 1]])
    assert torch.equal(signed_gram(left, right, 2), torch.tensor([[4.0 - 10 - 18, 1 - 2 - 3]]))
    assert torch.equal(signed_gram(left, right, 0), left @ right.T)
