"""Tangent kernels of infinitely wide graph networks, between graphs."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.structured import GraphConfig, GraphNodeConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.duals.covariances import relu_duals
from ntkpipe.workers.kernels.closed_form.samples import as_doubles
from ntkpipe.workers.kernels.closed_form.tiling import mirrored, tiles

BATCH_BYTES = 2 * 2**20
"""Of one tensor of node pairs. About eight of them exist at a time, and are read from a processor's cache many times."""


@dataclass(frozen=True, slots=True)
class Graphs:
    """Graphs as they enter the recursion, (..., V, V) and (..., V, F)."""

    adjacency: torch.Tensor
    """Scaled: what sums over neighbours multiply with."""
    features: torch.Tensor
    variances: tuple[torch.Tensor, ...] = ()
    """(..., V) variances of the nodes before every perceptron layer, in order; empty as long as they are not known."""

    def at(self, index: slice | tuple[slice | None, ...]) -> "Graphs":
        """Return some of the graphs, or all with more leading dimensions."""
        return Graphs(self.adjacency[index], self.features[index], tuple(layer[index] for layer in self.variances))


@final
class GraphKernel(AbstractClosedForm):
    """The kernel of :class:`ntkpipe.configs.kernels.structured.GraphConfig`.

    A graph of V places takes (V, V + F) numbers: its adjacency, with self-loops where a node is to see itself, beside
    its features. Adjacencies may be weighted and directed. Nodes without features or neighbours, and places without
    nodes, have variance 0 and contribute what their covariances of 0 say: nothing. Variances of all layers are computed
    once per graph in O(V^3); a pair of graphs takes O(V^3) per aggregation and O(V^2) per layer, in batches of
    ``BATCH_BYTES`` or of one pair.
    """

    def __init__(self, config: GraphConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between graphs, (N, V, V + F) and (M, V', V' + F).

        Raises:
            ConfigError: The samples are not graphs, or their features are of different dimensions.
        """
        graphs = self._prepared(x)
        others = graphs if x2 is None else self._prepared(x2)
        if graphs.features.shape[-1] != others.features.shape[-1]:
            raise ConfigError(
                f"kind 'gntk' takes graphs whose nodes have features of one dimension, found "
                f"{graphs.features.shape[-1]} and {others.features.shape[-1]}."
            )
        (num_rows, num_nodes), (num_columns, other_nodes) = graphs.features.shape[:2], others.features.shape[:2]
        block_NM = graphs.features.new_zeros(num_rows, num_columns)
        num_pairs = _graphs_per_batch(num_nodes * other_nodes)
        for rows, columns in tiles(num_rows, None if x2 is None else num_columns, num_pairs):
            block_NM[rows, columns] = self._values(graphs.at((rows, None)), others.at((None, columns)))
        return mirrored(block_NM) if x2 is None else block_NM

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return every graph's kernel with itself."""
        graphs = self._parsed(x)
        return torch.cat([graphs.features.new_zeros(0), *(self._values(graphs.at(part)) for part in _batches(graphs))])

    def _values(self, graphs: Graphs, others: Graphs | None = None) -> torch.Tensor:
        return 2 * tangent_covariance(self._config, graphs, others).sum((-2, -1))

    def _prepared(self, x: torch.Tensor) -> Graphs:
        graphs = self._parsed(x)
        layers = [node_variances(self._config, graphs.at(part)) for part in _batches(graphs)]
        variances = tuple(torch.cat(parts) for parts in zip(*layers, strict=True)) if layers else ()
        return Graphs(graphs.adjacency, graphs.features, variances)

    def _parsed(self, x: torch.Tensor) -> Graphs:
        if x.dim() != 3 or not 0 < x.shape[1] < x.shape[2]:
            raise ConfigError(
                "kind 'gntk' takes graphs of shape (V, V + F), V columns of adjacency beside F >= 1 of features, found "
                f"samples of shape {tuple(x.shape[1:])}."
            )
        x, num_nodes = as_doubles(x), x.shape[1]
        return Graphs(scaled_adjacency(x[..., :num_nodes], self._config.scale), x[..., num_nodes:])


def scaled_adjacency(adjacency: torch.Tensor, scale: Literal["uniform", "degree", "graphon"]) -> torch.Tensor:
    """Return (..., V, V) as it is, with every row divided by its sum (0 stays 0), or divided by V."""
    if scale == "uniform":
        return adjacency
    if scale == "graphon":
        return adjacency / max(1, adjacency.shape[-1])
    degrees = adjacency.sum(-1, keepdim=True)
    return torch.where(degrees == 0, 0.0, adjacency / torch.where(degrees == 0, 1.0, degrees))


def node_variances(config: GraphConfig, graphs: Graphs) -> tuple[torch.Tensor, ...]:
    """Return the (..., V) variances before every layer; all pairs of a graph's nodes are needed to aggregate them."""
    covariance = _aggregated(graphs.features @ graphs.features.mT, graphs, graphs)
    found = []
    for block in range(config.num_blocks):
        for _ in range(config.num_mlp_layers):
            variance = _own_variances(covariance)
            found.append(variance)
            covariance, _ = relu_duals(variance[..., :, None], covariance, variance[..., None, :])
        if block < config.num_blocks - 1:
            covariance = _aggregated(covariance, graphs, graphs)
    return tuple(found)


def tangent_covariance(
    config: GraphConfig | GraphNodeConfig, graphs: Graphs, others: Graphs | None = None
) -> torch.Tensor:
    """Return T of all pairs of nodes, (..., V, V'), or with jumping knowledge its sum over blocks and H H'^T.

    Args:
        config: Depths and jumping knowledge.
        graphs: Leading dimensions are broadcast against those of ``others``.
        others: None for each graph with itself, when the variances are found on the way; else both need theirs.
    """
    partner = others or graphs
    raw = graphs.features @ partner.features.mT
    covariance = _aggregated(raw, graphs, partner)
    tangent, total = covariance.clone(), raw
    layers = iter(zip(graphs.variances, partner.variances, strict=True))
    for block in range(config.num_blocks):
        for _ in range(config.num_mlp_layers):
            a, c = (_own_variances(covariance),) * 2 if others is None else next(layers)
            _perceptron_layer(covariance, tangent, a, c)
        if config.jumping_knowledge:
            total = total + tangent
        if block < config.num_blocks - 1:
            covariance, tangent = _aggregated(covariance, graphs, partner), _aggregated(tangent, graphs, partner)
    return total if config.jumping_knowledge else tangent


def _perceptron_layer(covariance: torch.Tensor, tangent: torch.Tensor, a: torch.Tensor, c: torch.Tensor) -> None:
    """Replace S by dual(S) and T by T dual'(S) + S, in place and in strips of rows, so that temporaries stay small."""
    num_rows = covariance.shape[-2]
    step = max(1, BATCH_BYTES * num_rows // max(1, 8 * covariance.numel()))
    for start in range(0, num_rows, step):
        rows = (..., slice(start, start + step), slice(None))
        dual, derivative = relu_duals(a[..., start : start + step, None], covariance[rows], c[..., None, :])
        covariance[rows] = dual
        tangent[rows] = derivative.mul_(tangent[rows]).add_(dual)


def _own_variances(covariance: torch.Tensor) -> torch.Tensor:
    """Return a copy of the diagonals; weights of both signs can cancel to less than zero by rounding."""
    return covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0)


def _aggregated(covariance: torch.Tensor, graphs: Graphs, others: Graphs) -> torch.Tensor:
    return graphs.adjacency @ covariance @ others.adjacency.mT


def _batches(graphs: Graphs) -> Iterator[slice]:
    num, num_nodes = graphs.features.shape[:2]
    size = _graphs_per_batch(num_nodes**2)
    return (slice(start, start + size) for start in range(0, num, size))


def _graphs_per_batch(node_pairs: int) -> int:
    return max(1, BATCH_BYTES // (8 * node_pairs))
