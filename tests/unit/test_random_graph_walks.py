import io
import math

import numpy as np
import pytest
import torch
from contracts.random_features import RandomFeaturesContract
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.linalg import expm

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import GraphWalkFeaturesConfig
from ntkpipe.workers.kernels.random_features.base import signed_gram
from ntkpipe.workers.kernels.random_features.graph_walks import GraphWalkFeatures, walk_graph

# A triangle with a tail, a loop at its end, weights of very different sizes, and an isolated node.
EDGES = [(0, 1, 1.0), (1, 2, 2.0), (0, 2, 0.5), (2, 3, 1.0), (3, 4, 4.0), (4, 4, 1.0)]
NUM_NODES = 6


def adjacency():
    weights = np.zeros((NUM_NODES, NUM_NODES))
    for first, second, weight in EDGES:
        weights[first, second] = weights[second, first] = weight
    return weights


def normalised(weights, sigma):
    degrees = weights.sum(axis=1)
    roots = np.where(degrees > 0, 1 / np.sqrt(np.where(degrees > 0, degrees, 1)), 0)
    return sigma**2 * roots[:, None] * weights * roots[None]


def dense(function, u):
    identity = np.eye(len(u))
    if function == "exponential":
        return expm(u)
    if function == "inverse":
        return np.linalg.inv(identity - u)
    if function == "inverse_square":
        return np.linalg.inv((identity - u) @ (identity - u))
    return (identity + u) @ (identity + u)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "graph.npz"
    np.savez(path, adjacency=adjacency())
    return str(path)


class GraphWalkContract(RandomFeaturesContract):
    positive = False
    size = 8
    function = "exponential"
    sigma = 0.8
    stop = 0.2
    num_seeds = 160
    graph = ""

    @pytest.fixture(autouse=True)
    def _graph(self, graph):
        type(self).graph = graph

    def samples(self):
        return torch.tensor([0, 5, 2, 3, 4, 0])

    def make(self, seed, size):
        return GraphWalkFeatures(
            GraphWalkFeaturesConfig(
                graph=self.graph, function=self.function, sigma=self.sigma, stop=self.stop, num_walks=size, seed=seed
            )
        )

    def exact(self, x):
        return dense(self.function, normalised(adjacency(), self.sigma))[np.ix_(x, x)]

    def test_an_isolated_node_is_similar_to_itself_only_in_every_draw(self, estimates):
        assert np.abs(estimates[:, 1, 1] - 1).max() < 1e-12
        assert not estimates[:, 1, [0, 2, 3, 4, 5]].any()

    def test_features_that_count_negatively_are_as_many_as_nodes(self):
        assert (self.make(0, 1).dim, self.make(0, 1).num_negative) == (2 * NUM_NODES, NUM_NODES)


class TestExponential(GraphWalkContract):
    pass


class TestInverse(GraphWalkContract):
    function = "inverse"
    size = 8


class TestInverseSquare(GraphWalkContract):
    function = "inverse_square"
    sigma = 0.6
    size = 8


class TestSquare(GraphWalkContract):
    function = "square"
    sigma = 1.1
    stop = 0.1


def estimate(path, nodes, **options):
    feature_map = GraphWalkFeatures(GraphWalkFeaturesConfig(graph=str(path), **options))
    features = feature_map.features(nodes)
    return signed_gram(features, features, feature_map.num_negative).numpy()


@pytest.mark.parametrize("function", ["exponential", "inverse", "inverse_square", "square"])
def test_many_walks_come_near_the_dense_function(graph, function):
    found = estimate(graph, torch.arange(NUM_NODES), function=function, sigma=0.6, num_walks=20_000, stop=0.2)
    exact = dense(function, normalised(adjacency(), 0.6))
    np.testing.assert_allclose(found, exact, atol=0.03 * exact.max())


def test_small_entries_between_far_nodes_of_a_chain_are_estimated_too(tmp_path):
    weights = np.eye(8, k=1) + np.eye(8, k=-1)
    np.savez(tmp_path / "chain.npz", adjacency=weights)
    found = estimate(tmp_path / "chain.npz", torch.tensor([0, 7]), sigma=0.8, num_walks=50_000)
    exact = expm(normalised(weights, 0.8))[0, 7]
    assert exact < 1e-5
    assert found[0, 1] == pytest.approx(exact, rel=0.2)


def test_the_same_walks_on_both_sides_would_bias_the_diagonal(graph):
    """What two sets of walks are for: the mean over seeds of |a|^2 of one set is not K(i, i)."""
    totals = []
    for seed in range(100):
        feature_map = GraphWalkFeatures(GraphWalkFeaturesConfig(graph=graph, sigma=0.9, num_walks=2, seed=seed))
        features = feature_map.features(torch.arange(NUM_NODES))
        totals.append(float((features[:, :NUM_NODES] + features[:, NUM_NODES:]).square().sum()))
    exact = np.trace(dense("exponential", normalised(adjacency(), 0.9)))
    assert np.mean(totals) - exact > 5 * np.std(totals) / np.sqrt(100)


def test_a_column_of_indices_is_a_list_of_indices(graph):
    feature_map = GraphWalkFeatures(GraphWalkFeaturesConfig(graph=graph))
    nodes = torch.tensor([3, 1, 3])
    assert torch.equal(feature_map.features(nodes), feature_map.features(nodes.int().unsqueeze(1)))
    assert torch.equal(feature_map.features(nodes), feature_map.features(nodes.double()))
    assert feature_map.features(nodes[:0]).shape == (0, 2 * NUM_NODES)


def test_features_are_the_same_to_the_last_bit_whatever_is_computed_with_them(graph, monkeypatch):
    config = GraphWalkFeaturesConfig(graph=graph, num_walks=10)
    whole = GraphWalkFeatures(config).features(torch.arange(NUM_NODES))
    monkeypatch.setattr("ntkpipe.workers.kernels.random_features.graph_walks.BATCH_WALKS", 20)
    assert torch.equal(whole, GraphWalkFeatures(config).features(torch.arange(NUM_NODES)))
    assert torch.equal(whole[2:3], GraphWalkFeatures(config).features(torch.tensor([2])))


def test_a_graph_without_edges_has_the_identity_as_kernel(tmp_path):
    np.savez(tmp_path / "empty.npz", adjacency=np.zeros((3, 3)))
    assert np.array_equal(estimate(tmp_path / "empty.npz", torch.arange(3)), np.eye(3))


def test_a_single_node_with_a_loop_is_a_graph(tmp_path):
    np.savez(tmp_path / "loop.npz", adjacency=[[2.0]])
    found = estimate(tmp_path / "loop.npz", torch.tensor([0]), sigma=0.7, num_walks=20_000)
    assert found[0, 0] == pytest.approx(np.exp(0.49), rel=0.02)


def test_steps_go_to_neighbours_in_proportion_to_their_weights():
    weights = torch.from_numpy(adjacency())
    graph = walk_graph(weights)
    nodes = torch.full((20_000,), 2)
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    counts = torch.bincount(graph.neighbours(nodes, uniforms), minlength=NUM_NODES) / 20_000
    torch.testing.assert_close(counts.double(), weights[2] / weights[2].sum(), rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(1e-12, 1e12)), min_size=1), st.randoms())
def test_no_step_leaves_the_edges_of_a_graph(edges, random):
    weights = torch.zeros(6, 6, dtype=torch.float64)
    for first, second, weight in edges:
        weights[first, second] = weights[second, first] = weight
    sources = torch.tensor([node for edge in edges for node in edge[:2]])
    extremes = [2.0**-54, 1 - 2.0**-53, random.random()]
    for uniform in extremes:
        ends = walk_graph(weights).neighbours(sources, torch.full((len(sources),), uniform, dtype=torch.float64))
        assert (weights[sources, ends] > 0).all()


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (torch.tensor([0.0, 0.5]), "give integers"),
        (torch.tensor([True, False]), "give integers"),
        (torch.tensor([[0, 1], [1, 2]]), "shape"),
        (torch.tensor(3), "shape"),
        (torch.tensor([0, 6]), "nodes 0 to 5"),
        (torch.tensor([0.0, math.inf]), "nodes 0 to 5, found indices 0 to inf"),
        (torch.tensor([0.0, math.nan]), "give integers"),
        (torch.tensor([-1, 2]), "nodes 0 to 5"),
    ],
)
def test_samples_that_are_no_nodes_are_refused(graph, nodes, message):
    with pytest.raises(ConfigError, match=message):
        GraphWalkFeatures(GraphWalkFeaturesConfig(graph=graph)).features(nodes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 3)), "square"),
        (np.ones(4), "square"),
        (np.zeros((0, 0)), "square"),
        (np.array([[0, 1], [2, 0]]), "not symmetric"),
        (np.array([[0, -1], [-1, 0]]), "negative"),
        (np.array([[0, np.inf], [np.inf, 0]]), "finite"),
        (np.array([["a"]]), "finite numbers"),
    ],
)
def test_weights_that_make_no_graph_are_refused(tmp_path, weights, message):
    np.savez(tmp_path / "graph.npz", adjacency=weights)
    with pytest.raises(ConfigError, match=message):
        GraphWalkFeatures(GraphWalkFeaturesConfig(graph=str(tmp_path / "graph.npz")))


def bytes_of(save, *arrays, **named):
    stream = io.BytesIO()
    save(stream, *arrays, **named)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 not a zip file",
        b"plain text",
        bytes_of(np.save, np.eye(2)),
        bytes_of(np.savez, weights=np.eye(2)),
        bytes_of(np.savez, adjacency=np.array([[None]])),
    ],
)
def test_files_that_hold_no_graph_are_refused(tmp_path, data):
    path = tmp_path / "graph.npz"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"not an npz file with 'adjacency'"):
        GraphWalkFeatures(GraphWalkFeaturesConfig(graph=str(path)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        GraphWalkFeatures(GraphWalkFeaturesConfig(graph=str(tmp_path / "none.npz")))


def test_where_the_graph_is_does_not_belong_to_the_identity_of_a_kernel():
    first, second = (GraphWalkFeaturesConfig(graph=f"/{folder}/graph.npz") for folder in "ab")
    assert first.semantic() == second.semantic()


@pytest.mark.parametrize(
    "options",
    [
        {"function": "inverse", "sigma": 1.0},
        {"function": "inverse", "sigma": 0.98, "stop": 0.1},
        {"function": "inverse_square", "sigma": 0.95, "stop": 0.3},
    ],
)
def test_walks_of_infinite_variance_are_refused(options):
    with pytest.raises(ValidationError, match=r"sigma\^4 < 1 - stop"):
        GraphWalkFeaturesConfig(graph="graph.npz", **options)


@pytest.mark.parametrize("options", [{"stop": 0}, {"stop": 1}, {"num_walks": 0}, {"sigma": 0}, {"dim": 4}])
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        GraphWalkFeaturesConfig(graph="graph.npz", **options)
