"""Neighbours of a run: named, by class, opposed, of transformed matrices, against dense rows in double precision."""

import numpy as np
import pytest
from solving import LAPLACE, MAPPED, run_config

import ntkpipe
from ntkpipe.configs.errors import ConfigError, NotFoundError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ntkpipe.run(run_config([]), tmp_path_factory.mktemp("runs") / "stored")


def ranked(run, matrix, rows, k, *, split, opposed=False, label=None):
    """Return the positions that sorting whole rows gives."""
    labels, found = run.labels("train"), []
    for row in rows:
        keys = matrix[row] if opposed else -matrix[row]
        order = [int(i) for i in np.argsort(keys, kind="stable") if not (split == "train" and i == row)]
        found.append([i for i in order if label is None or labels[i] == label][:k])
    return found


def positions(found):
    return [[one.position for one in row] for row in found]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("label", [None, 2])
def test_neighbors_of_several_samples_are_those_of_sorted_rows(run, split, opposed, label):
    query, rows = run.kernel("laplace", split), [29, 0, 5, 17]
    found = query.neighbors(rows, 7, opposed=opposed, label=label)
    matrix = query[:, :]
    assert positions(found) == ranked(run, matrix, rows, 7, split=split, opposed=opposed, label=label)
    for row, neighbors in zip(rows, found, strict=True):
        for one in neighbors:
            assert one.value == matrix[row, one.position]
            assert (one.sample_id, one.label) == (run.ids("train")[one.position], run.labels("train")[one.position])
    alone = run.neighbors(rows[0], 7, kernel="laplace", split=split, opposed=opposed, label=label)
    assert alone == found[0]


def test_every_tile_is_asked_for_once_for_all_samples(run, monkeypatch):
    reader, asked = run.reader, []
    read = type(reader).entries

    def counted(self, name, rows, columns, missing):
        asked.append({(int(r), int(c)) for r in np.unique(rows // 32) for c in np.unique(columns // 32)})
        return read(self, name, rows, columns, missing)

    monkeypatch.setattr("ntkpipe.workers.analyses.ranking.HELD_VALUES", 500)
    monkeypatch.setattr(type(reader), "entries", counted)
    found = run.kernel("laplace").neighbors(slice(None), 3)
    tiles = [tile for request in asked for tile in request]
    assert sorted(tiles) == [(r, c) for r in range(3) for c in range(3)]
    assert positions(found) == ranked(run, run.kernel("laplace")[:, :], range(90), 3, split="train")


@pytest.mark.parametrize("opposed", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_neighbors_by_class_are_those_of_each_class(run, opposed, split):
    found = run.neighbors_by_class(3, 4, kernel="fourier_features", split=split, opposed=opposed)
    assert list(found) == sorted(set(run.labels("train").tolist()))
    for label, neighbors in found.items():
        assert neighbors == run.neighbors(3, 4, kernel="fourier_features", split=split, opposed=opposed, label=label)


def test_of_more_neighbors_than_there_are_come_those_of_each_class(run):
    found = run.neighbors_by_class(3, 10**12, kernel="laplace", split="test")
    assert sum(map(len, found.values())) == 90


def test_a_class_that_is_smaller_than_k_gives_all_it_has_but_the_sample_itself(run):
    labels = run.labels("train")
    inside, outside = (int(np.flatnonzero(found)[0]) for found in (labels == 1, labels != 1))
    found = run.kernel("laplace").neighbors([inside, outside], 90, label=1)
    size = int((labels == 1).sum())
    assert [len(row) for row in found] == [size - 1, size]
    assert inside not in positions(found)[0]
    stored = run.reader.nearest(run.kernel("laplace").name, np.array([inside, outside]), 90, label=1)
    assert stored.positions.shape == (2, size)
    assert (stored.positions[0, -1], np.isnan(stored.values[0, -1])) == (-1, True)
    everyone = run.neighbors(inside, 1000, kernel="laplace")
    assert sorted(one.position for one in everyone) == [i for i in range(90) if i != inside]


def test_neighbors_under_a_transformed_kernel_are_those_of_the_transformed_matrix(run):
    matrix = run.kernel("fourier_features")[:, :]
    roots = np.sqrt(np.diagonal(matrix))
    cosine = matrix / np.outer(roots, roots)
    means = cosine.mean(axis=1)
    centred = cosine - means[:, None] - means + means.mean()
    for transforms, expected in ((["cosine"], cosine), (["cosine", "centred"], centred)):
        found = run.neighbors(4, 6, kernel="fourier_features", transforms=transforms, opposed=True)
        np.testing.assert_allclose([one.value for one in found], np.sort(np.delete(expected[4], 4))[:6], rtol=1e-10)
        assert run.kernel("fourier_features", transforms=transforms).neighbors([4], 6, opposed=True)[0] == found


def test_an_id_is_searched_in_all_splits(run):
    sample = run.ids("train")[11]
    assert run.neighbors(sample, 2) == run.neighbors(11, 2)
    assert run.neighbors_by_class(sample, 2) == run.neighbors_by_class(11, 2)
    assert run.neighbors(11, 2, kernel=None) == run.neighbors(11, 2, kernel="laplace")


def test_what_has_no_neighbors_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="k = 0 must be a whole number and at least 1"):
        run.neighbors(0, 0)
    with pytest.raises(ConfigError, match=r"k = 1\.5 must be a whole number"):
        run.neighbors(0, 1.5)
    with pytest.raises(NotFoundError, match="no class 3; its classes are 0 to 2"):
        run.neighbors(0, label=3)
    with pytest.raises(ConfigError, match="the columns are those of 'test'"):
        run.kernel("laplace", "train", "test").neighbors([0])
    with pytest.raises(NotFoundError, match="no sample 'nobody' in the splits train, test"):
        run.neighbors("nobody")
    unlabelled = run_config([], train={"labels": "none"}, test={"labels": "none"}, kernels=[LAPLACE, MAPPED])
    unlabelled = ntkpipe.run(unlabelled | {"solve": []}, tmp_path / "run")
    assert [one.label for one in unlabelled.neighbors(0, 2)] == [None, None]
    for question in (lambda: unlabelled.neighbors(0, label=0), lambda: unlabelled.neighbors_by_class(0)):
        with pytest.raises(ConfigError, match="split 'train' has no classes to tell samples by"):
            question()
