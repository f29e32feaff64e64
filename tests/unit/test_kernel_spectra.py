"""Spectra of stored kernels against dense decompositions."""

import golden
import numpy as np
import pytest
from solving import LAPLACE, run_config

import ntkpipe
from ntkpipe.configs.errors import ConfigError, TooLargeError
from ntkpipe.pipeline.query import spectra
from ntkpipe.workers.analyses.base import evenly_spaced
from ntkpipe.workers.analyses.decomposition import decompose, one_hot


def oracle(matrix, targets):
    """Return eigenvalues, and the share of the centred targets in the span of the first q eigenvectors."""
    values, vectors = np.linalg.eigh(matrix)
    values, vectors = values[::-1], vectors[:, ::-1]
    centred = targets - targets.mean(axis=0)
    shares = [
        np.linalg.norm(vectors[:, :q] @ (vectors[:, :q].T @ centred)) ** 2 / np.linalg.norm(centred) ** 2
        for q in range(1, len(values) + 1)
    ]
    return values, np.array(shares)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ntkpipe.run(run_config([]), tmp_path_factory.mktemp("runs") / "stored")


@pytest.mark.parametrize("max_samples", [90, 1000, 40, 1])
def test_a_spectrum_is_that_of_the_matrix_of_evenly_spaced_samples(run, max_samples):
    at = evenly_spaced(90, max_samples)
    found = run.spectrum("laplace", max_samples=max_samples)
    assert found.num_samples == 90
    matrix, classes = run.kernel("laplace")[at, at].reshape(len(at), -1), run.labels("train")[at]
    if max_samples == 1:
        assert (found.eigenvalues.tolist(), found.label_energy) == ([1.0], None)
        return
    values, shares = oracle(matrix, np.eye(3)[classes])
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.label_energy, shares, atol=1e-10)
    assert found.label_energy[-1] == pytest.approx(1)


def test_a_transformed_kernel_has_the_spectrum_of_the_transformed_matrix(run):
    matrix = run.kernel("fourier_features").cosine()[:, :]
    values, shares = oracle(matrix, np.eye(3)[run.labels("train")])
    found = run.spectrum("fourier_features", transforms=["cosine"])
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-10)
    # Beyond the rank eigenvectors are any basis of the rest, so that only their sum is determined.
    rank = int((values > 1e-9).sum())
    np.testing.assert_allclose(found.label_energy[:rank], shares[:rank], atol=1e-9)
    assert run.kernel("fourier_features").cosine().spectrum().eigenvalues.tolist() == found.eigenvalues.tolist()
    assert found.eigenvalues.sum() == pytest.approx(90)


def test_real_targets_are_centred_each_and_no_labels_have_no_energy(tmp_path):
    for labels in ("values", "none"):
        document = run_config([], train={"labels": labels}, test={"labels": labels}, kernels=[LAPLACE])
        run = ntkpipe.run(document | {"solve": []}, tmp_path / labels)
        found = run.spectrum()
        if labels == "none":
            assert found.label_energy is None
        else:
            _, shares = oracle(run.kernel("laplace")[:, :], run.labels("train"))
            np.testing.assert_allclose(found.label_energy, shares, atol=1e-10)
        assert found.eigenvalues.sum() == pytest.approx(90)


def test_equal_targets_have_no_energy_although_their_mean_is_rounded():
    assert decompose(np.eye(7), np.full((7, 1), 0.1))[1] is None
    assert decompose(np.eye(7), np.full((7, 2), 1e6 / 3))[1] is None
    assert decompose(np.eye(7), one_hot(np.full(7, 4)))[1] is None


def test_a_kernel_of_pairs_has_a_row_for_every_output(tmp_path):
    run = ntkpipe.run(golden.config(kernels=[{"kind": "full"}], solve=[]), tmp_path / "run")
    found = run.spectrum(max_samples=3)
    samples = evenly_spaced(4, 3)
    rows = (samples[:, None] * 2 + np.arange(2)).ravel()
    matrix = run.kernel("full")[:, :].astype(float)[np.ix_(rows, rows)]
    values, shares = oracle(matrix, np.eye(2)[np.array(golden.LABELS)[samples]].reshape(-1, 1))
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-9)
    np.testing.assert_allclose(found.label_energy, shares, atol=1e-9)


def test_what_has_no_spectrum_is_refused(run, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="between 'test' and 'train', so that it has no spectrum"):
        run.kernel("laplace", "test").spectrum()
    with pytest.raises(ConfigError, match="spectra are of split 'train', found 'test'"):
        run.kernel("laplace", "train", "test").spectrum()
    with pytest.raises(ConfigError, match="max_samples = 0 must be at least 1"):
        run.spectrum(max_samples=0)
    monkeypatch.setattr(spectra, "MAX_SAMPLES", 60)
    with pytest.raises(TooLargeError, match="a matrix of 90 rows; expected at most 60") as caught:
        run.spectrum(max_samples=91)
    assert (caught.value.limit, caught.value.asked) == (60, 90)
    asymmetric = ntkpipe.run(golden.config(kernels=[{"kind": "signgd_asym"}], solve=[]), tmp_path / "run")
    with pytest.raises(ConfigError, match="is not symmetric, so that it has no spectrum"):
        asymmetric.spectrum()
