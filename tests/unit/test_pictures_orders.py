"""In which order samples are drawn."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_matrices import ArrayMatrix

from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError, NumericalError
from ntkpipe.pipeline.pictures import clusters
from ntkpipe.pipeline.pictures.orders import Group, Order, class_order, id_order, stored_order


def nothing():
    """Take note of a tile."""


def test_numbers_in_names_count_by_their_value():
    names = ["img-10", "img-9", "img-09", "IMG-1", "", "img", "7", "img-9b", "img-" + "9" * 5000]

    found = [names[position] for position in id_order(names).positions]

    assert found == ["", "7", "IMG-1", "img", "img-09", "img-9", "img-9b", "img-10", "img-" + "9" * 5000]


@given(st.lists(st.text(max_size=6), unique=True, max_size=30))
def test_any_names_have_an_order_that_does_not_depend_on_how_they_are_stored(names):
    one = [names[position] for position in id_order(names).positions]
    other = sorted(names, reverse=True)

    assert one == [other[position] for position in id_order(other).positions]
    assert sorted(one) == sorted(names)


@given(st.lists(st.integers(0, 4), max_size=40))
def test_classes_are_side_by_side_and_stay_as_they_are_stored(labels):
    order = class_order(np.array(labels, dtype=np.int64))

    expected = sorted(range(len(labels)), key=lambda position: (labels[position], position))
    assert order.positions.tolist() == expected
    drawn = [labels[position] for position in order.positions]
    rebuilt = [label for group in order.groups for label in [int(group.label)] * (group.stop - group.start)]
    assert rebuilt == drawn


@pytest.mark.parametrize("labels", [None, np.zeros((3, 2)), np.zeros(3)])
def test_an_order_by_class_needs_classes(labels):
    with pytest.raises(ConfigError, match="no classes"):
        class_order(labels)


def test_rows_of_pairs_stay_together():
    order = Order(np.array([2, 0, 1]), (Group("a", 0, 1), Group("b", 1, 3)))

    found = order.of_entries(2)

    assert found.positions.tolist() == [4, 5, 0, 1, 2, 3]
    assert found.groups == (Group("a", 0, 2), Group("b", 2, 6))
    assert order.of_entries(1) is order
    assert stored_order(3).positions.tolist() == [0, 1, 2]


def planted(size=240, num_clusters=4, seed=0):
    """Return a kernel of samples around a few directions, and the direction of each."""
    generator = np.random.default_rng(seed)
    which = generator.integers(0, num_clusters, size)
    centres = generator.standard_normal((num_clusters, 30))
    features = centres[which] + 0.3 * generator.standard_normal((size, 30))
    return (features @ features.T).astype(np.float32), which


@pytest.mark.parametrize("block_rows", [16, 500])
def test_clusters_that_the_kernel_holds_are_found(block_rows):
    kernel, which = planted()
    matrix = ArrayMatrix(kernel, block_rows, symmetric=True)

    advanced = []
    embedding, embedded = clusters.embed(matrix, 4, lambda: advanced.append(1))
    order = embedding.order(embedded)

    assert sorted(order.positions.tolist()) == list(range(240))
    assert len(order.groups) == 4
    for group in order.groups:
        assert len(set(which[order.positions[group.start : group.stop]])) == 1
    assert set(matrix.reads.values()) == {1}
    assert len(matrix.reads) == len(advanced) == matrix.num_tiles(columns=embedding.landmarks_Z)
    expected = kernel[:, embedding.landmarks_Z].astype(np.float64) @ embedding.coordinates_ZR
    np.testing.assert_allclose(embedded, expected, rtol=1e-12, atol=1e-12)


def test_samples_of_another_split_fall_to_the_clusters_of_the_training_samples():
    kernel, which = planted(300)
    train = ArrayMatrix(kernel[:200, :200], 32, symmetric=True)
    other = ArrayMatrix(kernel[200:, :200], 32)

    embedding, _ = clusters.embed(train, 4, nothing)
    order = embedding.order(clusters.embedded(other, embedding, nothing))

    for group in order.groups:
        assert len(set(which[200:][order.positions[group.start : group.stop]])) == 1


def test_the_order_of_clusters_is_the_same_every_time():
    kernel, _ = planted(seed=5)

    found = []
    for _ in range(2):
        embedding, embedded = clusters.embed(ArrayMatrix(kernel, 50, symmetric=True), 6, nothing)
        found.append(embedding.order(embedded))

    np.testing.assert_array_equal(found[0].positions, found[1].positions)
    assert found[0].groups == found[1].groups


def test_within_a_cluster_the_closest_to_its_centre_come_first():
    kernel, _ = planted(seed=3)
    embedding, embedded = clusters.embed(ArrayMatrix(kernel, 50, symmetric=True), 4, nothing)
    order = embedding.order(embedded)

    directions = embedded - embedding.means_R
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    closeness = (directions @ embedding.centres_KR.T).max(axis=1)
    for group in order.groups:
        assert (np.diff(closeness[order.positions[group.start : group.stop]]) <= 1e-12).all()


def test_equal_samples_are_one_cluster():
    embedding, embedded = clusters.embed(ArrayMatrix(np.ones((12, 12), np.float32), 5, symmetric=True), 3, nothing)

    assert [(group.start, group.stop) for group in embedding.order(embedded).groups] == [(0, 12)]


def test_a_kernel_without_positive_directions_has_no_clusters():
    with pytest.raises(NumericalError, match="no positive eigenvalue"):
        clusters.embed(ArrayMatrix(-np.eye(6, dtype=np.float32), 3, symmetric=True), 2, nothing)


def test_clusters_of_what_is_not_committed_are_refused():
    matrix = ArrayMatrix(planted()[0], 64, symmetric=True, missing={(2, 0)})

    with pytest.raises(ChunkNotReadyError):
        clusters.embed(matrix, 3, nothing)


class ProductMatrix(ArrayMatrix):
    """The inner products of features, made tile by tile."""

    def __init__(self, features, block_rows):
        super().__init__(np.empty((0, 0), np.float32), block_rows, symmetric=True)
        self.features = features
        self.shape = (len(features), len(features))

    def tile(self, row, column):
        return self.features[self.span(row)] @ self.features[self.span(column)].T


def test_memory_is_that_of_the_coordinates_and_of_a_few_blocks():
    features = np.random.default_rng(0).standard_normal((40_000, 6), np.float32)
    matrix = ProductMatrix(features, 500)

    tracemalloc.start()
    try:
        embedding, embedded = clusters.embed(matrix, 100, nothing)
        order = embedding.order(embedded)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(order) == 40_000
    assert peak < len(features) * clusters.NUM_LANDMARKS * 8 / 3


def test_landmarks_lie_in_a_few_blocks_and_do_not_repeat():
    for num_samples, block_rows in ((60_000, 1024), (1433, 512), (3, 10), (1, 1), (5000, 7)):
        found = clusters.landmarks(num_samples, block_rows)
        assert len(set(found.tolist())) == len(found) <= clusters.NUM_LANDMARKS + clusters.NUM_BLOCKS
        assert found.min() >= 0
        assert found.max() < num_samples
        assert len(set((found // block_rows).tolist())) <= clusters.NUM_BLOCKS
