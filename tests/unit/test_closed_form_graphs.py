"""Tangent kernels of graph networks, between graphs and between nodes, against plain loops and finite networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from contracts.kernels import KernelContract
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.structured import GraphConfig, GraphNodeConfig
from ntkpipe.workers.kernels.closed_form import graphs as graphs_module
from ntkpipe.workers.kernels.closed_form.graph_nodes import GraphNodeKernel
from ntkpipe.workers.kernels.closed_form.graphs import GraphKernel


def gntk(**options):
    return GraphKernel(GraphConfig(**options))


def graph(num_nodes=4, dim=3, seed=0, places=None):
    """A random undirected graph with self-loops: adjacency beside features, then places without nodes."""
    generator = np.random.default_rng(seed)
    adjacency = np.triu(generator.random((num_nodes, num_nodes)) < 0.5, 1).astype(float)
    adjacency += adjacency.T + np.eye(num_nodes)
    places = places or num_nodes
    found = np.zeros((places, places + dim))
    found[:num_nodes, :num_nodes] = adjacency
    found[:num_nodes, places:] = generator.normal(size=(num_nodes, dim))
    return torch.from_numpy(found)


def graphs(num=6, places=5, dim=3):
    """Graphs of two to five nodes, the first and the last of which are equal."""
    x = torch.stack([graph(2 + seed % (places - 1), dim, seed, places) for seed in range(num)])
    x[-1] = x[0]
    return x


def kappas(a, b, c):
    norm = math.sqrt(a * c)
    if norm == 0:
        return 0.0, 0.5
    angle = math.acos(max(-1.0, min(1.0, b / norm)))
    return norm * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi, 1 - angle / math.pi


def split(sample):
    num_nodes = sample.shape[0]
    return sample[:, :num_nodes].numpy(), sample[:, num_nodes:].numpy()


def aggregate_by_loops(matrix, first, second, scale):
    found = np.zeros(matrix.shape)
    for u in range(len(first)):
        for v in range(len(second)):
            total = sum(
                first[u, p] * second[v, q] * matrix[p, q] for p in range(len(first)) for q in range(len(second))
            )
            if scale == "degree":
                degrees = first[u].sum() * second[v].sum()
                total = total / degrees if degrees else 0.0
            elif scale == "graphon":
                total /= len(first) * len(second)
            found[u, v] = total
    return found


def nodes_by_loops(one, other, num_blocks, num_mlp_layers, scale, jumping_knowledge):
    """T between the nodes of two graphs, one number at a time."""
    pairs = {"xx": (one, one), "xy": (one, other), "yy": (other, other)}
    sigma = {name: first[1] @ second[1].T for name, (first, second) in pairs.items()}
    total = sigma["xy"].copy()
    sigma = {name: aggregate_by_loops(sigma[name], pair[0][0], pair[1][0], scale) for name, pair in pairs.items()}
    theta = sigma["xy"].copy()
    for block in range(num_blocks):
        for _ in range(num_mlp_layers):
            variances = {"x": np.diagonal(sigma["xx"]).copy(), "y": np.diagonal(sigma["yy"]).copy()}
            slopes = np.zeros(theta.shape)
            for name in pairs:
                before = sigma[name].copy()
                for u in range(before.shape[0]):
                    for v in range(before.shape[1]):
                        value, slope = kappas(variances[name[0]][u], before[u, v], variances[name[1]][v])
                        sigma[name][u, v] = value
                        if name == "xy":
                            slopes[u, v] = slope
            theta = theta * slopes + sigma["xy"]
        total += theta
        if block < num_blocks - 1:
            sigma = {
                name: aggregate_by_loops(sigma[name], pair[0][0], pair[1][0], scale) for name, pair in pairs.items()
            }
            theta = aggregate_by_loops(theta, one[0], other[0], scale)
    return total if jumping_knowledge else theta


# Graphs


@pytest.mark.parametrize(("num_mlp_layers", "expected"), [(1, 0.63661977), (2, 1.37141728)])
@pytest.mark.parametrize("scale", ["uniform", "degree"])
def test_a_single_node_that_sees_itself_has_twice_the_kernel_of_a_perceptron(num_mlp_layers, expected, scale):
    x = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]], dtype=torch.float64)
    kernel = gntk(num_blocks=1, num_mlp_layers=num_mlp_layers, scale=scale)
    assert float(kernel.block(x)[0, 1]) == pytest.approx(expected, abs=1e-8)
    assert kernel.diagonal(x).tolist() == pytest.approx([2 * (num_mlp_layers + 1)] * 2)


@pytest.mark.parametrize("scale", ["uniform", "degree"])
@pytest.mark.parametrize("jumping_knowledge", [False, True])
@pytest.mark.parametrize(("num_blocks", "num_mlp_layers"), [(1, 1), (2, 2), (3, 1)])
def test_blocks_match_plain_loops_over_nodes(scale, jumping_knowledge, num_blocks, num_mlp_layers):
    x, y = torch.stack([graph(4, 2, 0), graph(4, 2, 1)]), torch.stack([graph(3, 2, 2), graph(3, 2, 3)])
    options = {"num_blocks": num_blocks, "num_mlp_layers": num_mlp_layers, "jumping_knowledge": jumping_knowledge}
    found = gntk(scale=scale, **options).block(x, y)
    expected = [
        [2 * nodes_by_loops(split(a), split(b), num_blocks, num_mlp_layers, scale, jumping_knowledge).sum() for b in y]
        for a in x
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def network_kernel(x, num_blocks, num_mlp_layers, width, seed):
    """The tangent kernel of a random finite network with sums over neighbours and over nodes, by autograd."""
    generator = torch.Generator().manual_seed(seed)
    num_nodes = x.shape[1]

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    sizes = [x.shape[2] - num_nodes] + [width] * (num_blocks * num_mlp_layers)
    parameters = [*(normal(before, after) for before, after in itertools.pairwise(sizes)), normal(width)]
    rows = []
    for sample in x:
        adjacency, hidden, layers = sample[:, :num_nodes], sample[:, num_nodes:], iter(parameters)
        for _ in range(num_blocks):
            hidden = adjacency @ hidden
            for _ in range(num_mlp_layers):
                hidden = torch.relu(hidden @ next(layers)) * math.sqrt(2 / width)
        output = (hidden @ next(layers)).sum()
        rows.append(torch.cat([gradient.flatten() for gradient in torch.autograd.grad(output, parameters)]))
    features = torch.stack(rows)
    return features @ features.T


def test_finite_random_networks_converge_to_half_of_the_kernel():
    x = graphs(num=4)[:3]
    exact = gntk(num_blocks=2, num_mlp_layers=2).block(x)
    errors = []
    for width in (16, 64, 256):
        found = torch.stack([2 * network_kernel(x, 2, 2, width, seed) for seed in range(24)])
        errors.append(float(((found - exact) / exact.max()).square().mean().sqrt()))
    slope = np.polyfit(np.log([16, 64, 256]), np.log(errors), 1)[0]
    assert -0.7 < slope < -0.3
    assert float(((found.mean(0) - exact) / exact.max()).abs().max()) < 4 * errors[-1] / math.sqrt(24)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.booleans(), st.sampled_from(["uniform", "degree"]))
def test_the_order_of_nodes_does_not_matter(seed, jumping_knowledge, scale):
    x = graphs(num=4)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(5))
    shuffled = x.clone()
    shuffled[:, :, :5] = x[:, order][:, :, order]
    shuffled[:, :, 5:] = x[:, order, 5:]
    kernel = gntk(jumping_knowledge=jumping_knowledge, scale=scale)
    torch.testing.assert_close(kernel.block(shuffled), kernel.block(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel.block(shuffled, x), kernel.block(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", ["uniform", "degree"])
@pytest.mark.parametrize("jumping_knowledge", [False, True])
def test_places_without_nodes_change_nothing(scale, jumping_knowledge):
    kernel = gntk(scale=scale, jumping_knowledge=jumping_knowledge)
    exact, padded = (torch.stack([graph(4, 3, seed, places) for seed in range(3)]) for places in (4, 9))
    torch.testing.assert_close(kernel.block(padded), kernel.block(exact), rtol=1e-13, atol=0)
    torch.testing.assert_close(kernel.block(padded, exact), kernel.block(exact), rtol=1e-13, atol=0)
    torch.testing.assert_close(kernel.diagonal(padded), kernel.diagonal(exact), rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", ["uniform", "degree"])
def test_nodes_without_neighbours_or_features_and_empty_graphs_are_defined(scale):
    x = graphs(num=5)
    x[1, 0, :5], x[1, :, 0] = 0, 0  # no neighbours, not even itself
    x[2, :, 5:] = 0  # no features at all
    x[3] = 0  # no nodes
    kernel = gntk(scale=scale)
    found = kernel.block(x)
    assert torch.isfinite(found).all()
    assert not found[2].any()
    assert not found[3].any()
    assert found[1, 1] > 0


def test_two_copies_of_a_graph_side_by_side_count_twice_in_sums():
    one = graph(3, 2, seed=5)
    adjacency, features = split(one)
    both = np.hstack([np.kron(np.eye(2), adjacency), np.vstack([features, features])])
    pair = torch.from_numpy(both)[None]
    padded = graph(3, 2, seed=5, places=6)[None]
    kernel = gntk()
    assert float(kernel.block(pair, padded)) == pytest.approx(2 * float(kernel.diagonal(padded)), rel=1e-12)
    assert float(kernel.diagonal(pair)) == pytest.approx(4 * float(kernel.diagonal(padded)), rel=1e-12)


def test_a_copy_of_a_graph_is_recognised_to_the_last_digits():
    x = graphs(num=3)[:1]
    for scale in ("uniform", "degree"):
        kernel = gntk(scale=scale, num_blocks=3, num_mlp_layers=3)
        assert float(kernel.block(x, x.clone())) == pytest.approx(float(kernel.diagonal(x)), rel=1e-13)


def test_weights_of_both_signs_may_cancel():
    x = graphs(num=2)
    x[0, :2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    x[0, 1, 5:] = x[0, 0, 5:]
    assert torch.isfinite(gntk().block(x)).all()
    assert torch.isfinite(gntk(scale="degree").block(x)).all()


def test_entries_do_not_depend_on_how_pairs_are_batched(monkeypatch):
    x, y = graphs(num=7), torch.stack([graph(4, 3, seed) for seed in range(3)])
    kernel = gntk()
    expected = kernel.block(x), kernel.block(x, y), kernel.diagonal(x)
    for pairs in (0, 3, 9):
        monkeypatch.setattr(graphs_module, "BATCH_BYTES", pairs * 8 * 25)
        for found, whole in zip((kernel.block(x), kernel.block(x, y), kernel.diagonal(x)), expected, strict=True):
            torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)


def test_no_graphs_give_an_empty_block():
    x = graphs()
    assert gntk().block(x[:0], x).shape == (0, 6)
    assert gntk().block(x, x[:0]).shape == (6, 0)
    assert gntk().diagonal(x[:0]).shape == (0,)


def test_samples_that_are_no_graphs_are_refused():
    for shape in ((2, 4, 4), (2, 4, 3), (2, 4), (2, 0, 3)):
        with pytest.raises(ConfigError, match=r"takes graphs of shape \(V, V \+ F\)"):
            gntk().block(torch.zeros(shape, dtype=torch.float64))
    with pytest.raises(ConfigError, match="one dimension, found 3 and 2"):
        gntk().block(graphs(), graphs(dim=2))


# Nodes


@pytest.fixture
def store(tmp_path):
    """Write a graph; returns the kernel of its nodes for some options."""

    def write(adjacency, features, **options):
        np.savez(tmp_path / "graph.npz", adjacency=adjacency, features=features)
        return GraphNodeKernel(GraphNodeConfig(graph=str(tmp_path / "graph.npz"), **options))

    return write


@pytest.mark.parametrize("scale", ["uniform", "degree", "graphon"])
@pytest.mark.parametrize("jumping_knowledge", [False, True])
@pytest.mark.parametrize(("num_blocks", "num_mlp_layers"), [(1, 1), (2, 2)])
def test_nodes_match_plain_loops(store, scale, jumping_knowledge, num_blocks, num_mlp_layers):
    adjacency, features = split(graph(6, 2, seed=3))
    options = {"num_blocks": num_blocks, "num_mlp_layers": num_mlp_layers, "jumping_knowledge": jumping_knowledge}
    found = store(adjacency, features, scale=scale, **options).matrix()
    one = (adjacency, features)
    expected = nodes_by_loops(one, one, num_blocks, num_mlp_layers, scale, jumping_knowledge)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # arc cosines of the loops lose half of their digits
    off = ~np.eye(6, dtype=bool)
    distinct = np.abs(found.numpy() - expected)[off] / np.abs(expected)[off]
    assert np.median(distinct) < 1e-12


def test_the_sum_over_nodes_is_half_of_the_kernel_of_the_graph(store):
    sample = graph(6, 2, seed=4)
    for scale in ("uniform", "degree"):
        matrix = store(*split(sample), scale=scale, num_blocks=2, num_mlp_layers=2).matrix()
        whole = gntk(num_blocks=2, num_mlp_layers=2, scale=scale).diagonal(sample[None])
        assert 2 * float(matrix.sum()) == pytest.approx(float(whole), rel=1e-12)


def test_large_graphs_are_worked_on_in_strips_of_rows(store, monkeypatch):
    kernel = store(*split(graph(12, 3, seed=1)), num_blocks=2)
    expected = kernel.matrix()
    monkeypatch.setattr(graphs_module, "BATCH_BYTES", 8 * 12 * 5)
    again = store(*split(graph(12, 3, seed=1)), num_blocks=2).matrix()
    torch.testing.assert_close(again, expected, rtol=1e-14, atol=0)


def graphon_graph(num_nodes):
    """W(u, v) = exp(-2 |u - v|) and smooth features at the middles of n equal parts of [0, 1]."""
    u = (np.arange(num_nodes) + 0.5) / num_nodes
    return np.exp(-2 * np.abs(u[:, None] - u)), np.stack([np.ones(num_nodes), np.cos(3 * u), u], axis=1)


def test_eigenvalues_and_entries_converge_along_samples_of_a_graphon(store):
    def kernel(num_nodes):
        return store(*graphon_graph(num_nodes), num_blocks=2, num_mlp_layers=2).matrix()

    def leading(matrix):
        return torch.linalg.eigvalsh(matrix / len(matrix)).flip(0)[:4]

    sizes = (9, 27, 81)
    matrices = [kernel(num_nodes) for num_nodes in sizes]
    limit = kernel(243)
    # Every third middle of the finer parts is the middle of a coarser one.
    spectral = [float(((leading(matrix) - leading(limit)) / leading(limit)).abs().max()) for matrix in matrices]
    entries = [
        float((matrix - limit[step // 2 :: step, step // 2 :: step]).abs().max() / limit.max())
        for matrix, step in zip(matrices, (27, 9, 3), strict=True)
    ]
    for errors in (spectral, entries):
        assert errors[0] > 3 * errors[1] > 9 * errors[2]
        assert errors[2] < 3e-3


def test_random_graphs_of_a_graphon_approach_its_kernel(store):
    generator = np.random.default_rng(0)
    errors = []
    for num_nodes in (40, 640):
        weights, features = graphon_graph(num_nodes)
        edges = np.triu(generator.random(weights.shape) < weights, 1).astype(float)
        limit = store(weights, features).matrix()
        found = store(edges + edges.T, features).matrix()
        errors.append(float((found - limit).square().mean().sqrt() / limit.square().mean().sqrt()))
    # Means over n neighbours miss theirs by n^(-1/2): a factor of four.
    assert errors[1] < errors[0] / 2.5


def test_indices_may_be_columns_and_whole_numbers_of_any_type(store):
    kernel = store(*split(graph(5, 2)))
    rows, columns = torch.tensor([3, 0]), torch.tensor([1, 1, 4])
    expected = kernel.matrix()[rows][:, columns]
    assert torch.equal(kernel.block(rows, columns), expected)
    assert torch.equal(kernel.block(rows[:, None], columns.double()), expected)
    assert torch.equal(kernel.diagonal(rows), kernel.matrix().diagonal()[rows])
    assert kernel.block(rows[:0], columns).shape == (0, 3)


def test_the_matrix_is_computed_once(store, tmp_path):
    kernel = store(*split(graph(5, 2)))
    first = kernel.matrix()
    (tmp_path / "graph.npz").unlink()
    assert kernel.matrix() is first


def test_isolated_nodes_and_nodes_without_features_are_defined(store):
    adjacency, features = split(graph(5, 2))
    adjacency[0], adjacency[:, 0], features[1] = 0, 0, 0
    for scale in ("uniform", "degree", "graphon"):
        matrix = store(adjacency, features, scale=scale).matrix()
        assert torch.isfinite(matrix).all()
        assert not matrix[0].any()


def test_indices_and_files_that_make_no_sense_are_refused(store, tmp_path):
    kernel = store(*split(graph(5, 2)))
    with pytest.raises(ConfigError, match="nodes 0 to 4, found indices 2 to 5"):
        kernel.block(torch.tensor([2, 5]))
    with pytest.raises(ConfigError, match="nodes 0 to 4, found indices -1 to 1"):
        kernel.diagonal(torch.tensor([-1, 1]))
    with pytest.raises(ConfigError, match="no whole numbers"):
        kernel.block(torch.tensor([0.5]))
    with pytest.raises(ConfigError, match=r"one index of a node each.*found shape \(3, 2\)"):
        kernel.block(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"found \(5, 5\) and \(4, 2\)"):
        store(np.eye(5), np.ones((4, 2))).block(torch.tensor([0]))
    with pytest.raises(ConfigError, match="not finite numbers"):
        store(np.eye(5), np.full((5, 2), np.nan)).block(torch.tensor([0]))
    with pytest.raises(ConfigError, match="not finite numbers"):
        store(np.full((2, 2), "x"), np.ones((2, 2))).block(torch.tensor([0]))
    np.savez(tmp_path / "graph.npz", adjacency=np.eye(3))
    config = GraphNodeConfig(graph=str(tmp_path / "graph.npz"))
    with pytest.raises(ConfigError, match="features"):
        GraphNodeKernel(config).block(torch.tensor([0]))
    np.save(tmp_path / "graph.npz.npy", np.eye(3))
    (tmp_path / "graph.npz.npy").rename(tmp_path / "graph.npz")
    with pytest.raises(ConfigError, match="not an npz file"):
        GraphNodeKernel(config).block(torch.tensor([0]))
    for content in (b"", b"PK\x03\x04 no archive"):
        (tmp_path / "graph.npz").write_bytes(content)
        with pytest.raises(ConfigError, match="not an npz file"):
            GraphNodeKernel(config).block(torch.tensor([0]))


# Contracts


class GraphContract(KernelContract):
    kernel = None

    def samples(self):
        x = graphs(num=8)
        x[2] = 0
        return x

    def block(self, x, x2=None):
        return self.kernel.block(x, x2)

    def diagonal(self, x):
        return self.kernel.diagonal(x)


class TestGraphSums(GraphContract):
    kernel = gntk()


class TestGraphMeans(GraphContract):
    kernel = gntk(scale="degree", num_blocks=3, num_mlp_layers=1, jumping_knowledge=True)


class NodeContract(KernelContract):
    scale = "graphon"

    @pytest.fixture(autouse=True)
    def write(self, store):
        self.kernel = store(*split(graph(9, 3, seed=2)), scale=self.scale)

    def samples(self):
        return torch.tensor([4, 1, 7, 0, 8, 2, 4])

    def block(self, x, x2=None):
        return self.kernel.block(x, x2)

    def diagonal(self, x):
        return self.kernel.diagonal(x)


class TestGraphonNodes(NodeContract):
    pass


class TestNodesOfMeans(NodeContract):
    scale = "degree"
