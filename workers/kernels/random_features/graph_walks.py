"""Random features of the nodes of a graph, from random walks."""

import math
from dataclasses import dataclass
from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.random_features import GraphWalkFeaturesConfig
from ntkpipe.workers.kernels.closed_form.files import read_arrays
from ntkpipe.workers.kernels.closed_form.samples import node_indices
from ntkpipe.workers.kernels.random_features.base import AbstractRandomFeatures
from ntkpipe.workers.kernels.random_features.streams import CPU, Stream

BATCH_WALKS = 2**19
"""Walks that are under way at a time, about 100 bytes each."""

NEGLIGIBLE = 1e-20
"""Coefficients of steps that are no longer taken: far below the rounding of K(i, i), which is about 1."""


@final
@dataclass(frozen=True, slots=True)
class WalkGraph:
    """The edges of a graph, sorted by the node they start from."""

    degrees_V: torch.Tensor
    """Sums of weights; one for isolated nodes, whose walks never leave."""
    starts_V1: torch.Tensor
    """Where the edges of each node start, and the number of edges at the end."""
    ends_E: torch.Tensor
    """The node that an edge leads to."""
    keys_E: torch.Tensor
    """The node that an edge starts from, plus the share of its degree up to and with this edge; increasing."""

    def neighbours(self, nodes_P: torch.Tensor, uniforms_P: torch.Tensor) -> torch.Tensor:
        """Return a neighbour of each node, drawn in proportion to the weights of its edges."""
        edges_P = torch.searchsorted(self.keys_E, nodes_P + uniforms_P, right=True)
        # Shares are rounded, and so is the sum of a node and a number just below one.
        edges_P = edges_P.clamp(self.starts_V1[nodes_P], self.starts_V1[nodes_P + 1] - 1)
        return self.ends_E[edges_P]


@final
class GraphWalkFeatures(AbstractRandomFeatures):
    """K = 2 n features of each of n nodes for a function of U = sigma^2 D^(-1/2) W D^(-1/2) (Reid et al. 2024).

    A power series sum_l alpha_l U^l is the product of f(U) with itself where the convolution of the coefficients f_l
    with themselves is alpha. Row i of f(U) is estimated by walks from i, which stop with probability p at every step,
    and move to a neighbour with a chance proportional to the weight of the edge. The product of
    U_jk / (chance of j to k) / (1 - p) along a walk telescopes, so that its visit of v at step l adds
    f_l (sigma^2 / (1 - p))^l sqrt(D_i / D_v). The second moment of visits at step l falls as
    (sigma^4 / (1 - p))^l f_l^2 whatever the graph; steps to uniform neighbours have no such bound.

    Two independent sets of walks give rows a and b, and the features (a + b) / 2 and, entering negatively, (a - b) / 2:
    an inner product is (<a, b'> + <b, a'>) / 2, without bias on the diagonal too. A node without edges has
    f_0^2 = K(i, i) = 1 and no similarity to others.
    """

    def __init__(self, config: GraphWalkFeaturesConfig) -> None:
        self._config = config
        self._graph = read_graph(config.graph)
        self.num_negative = len(self._graph.degrees_V)
        self.dim = 2 * self.num_negative

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the (N, 2 n) features of nodes; memory is O(N n). Walks are taken on the CPU.

        Args:
            x: (N,) or (N, 1) indices of nodes, whole numbers of any type.

        Raises:
            ConfigError: The samples are no indices of nodes.
        """
        nodes_N = node_indices(x, self.num_negative).to(CPU)
        unique_U, places_N = nodes_N.unique(return_inverse=True)
        first_UV, second_UV = self._rows(unique_U)
        features_UK = torch.cat((first_UV + second_UV, first_UV - second_UV), dim=1) / 2
        return features_UK[places_N].to(x.device)

    def _rows(self, nodes_U: torch.Tensor) -> torch.Tensor:
        """Return two independent estimates of the rows of f(U), (2, U, n)."""
        rows_UTV = self._graph.degrees_V.new_zeros(len(nodes_U), 2, self.num_negative)
        step = max(1, BATCH_WALKS // (2 * self._config.num_walks))
        for start in range(0, len(nodes_U), step):
            self._walk(nodes_U[start : start + step], rows_UTV[start : start + step])
        roots_V = self._graph.degrees_V.sqrt()
        rows_UTV *= (roots_V[nodes_U].unsqueeze(1) / roots_V / self._config.num_walks).unsqueeze(1)
        return rows_UTV.transpose(0, 1)

    def _walk(self, nodes_B: torch.Tensor, rows_BTV: torch.Tensor) -> None:
        """Add the coefficient of every step of the walks from some nodes to the node that is visited."""
        per_node, stream = 2 * self._config.num_walks, Stream(self._config.seed, ("walks",))
        places_P = nodes_B.repeat_interleave(per_node)
        positions_P = places_P * per_node + torch.arange(per_node, device=CPU).repeat(len(nodes_B))
        targets_P = torch.arange(2 * len(nodes_B), device=CPU).repeat_interleave(self._config.num_walks)
        targets_P *= self.num_negative
        # The first of a walk's numbers says how long it is, the one after l others where step l leads.
        uniforms_2P = stream.uniform_pairs(positions_P)
        lengths_P = uniforms_2P[0].log().div(math.log1p(-self._config.stop)).floor().long()
        lengths_P[self._graph.starts_V1[places_P] == self._graph.starts_V1[places_P + 1]] = 0
        sums, coefficient, step = rows_BTV.view(-1), 1.0, 0
        while len(places_P) and coefficient > NEGLIGIBLE:
            sums.index_add_(0, targets_P + places_P, sums.new_full((len(places_P),), coefficient))
            step += 1
            coefficient *= _ratio(self._config.function, step) * self._config.sigma**2 / (1 - self._config.stop)
            on_P = lengths_P >= step
            places_P, positions_P, targets_P, lengths_P = (
                numbers[on_P] for numbers in (places_P, positions_P, targets_P, lengths_P)
            )
            uniforms_2P = uniforms_2P[:, on_P] if step % 2 else stream.uniform_pairs(positions_P, step // 2)
            places_P = self._graph.neighbours(places_P, uniforms_2P[step % 2])


def read_graph(url: str) -> WalkGraph:
    """Read the weights of a graph's edges from an .npz file with the array ``adjacency``.

    Raises:
        ConfigError: The file cannot be read, or the weights are not symmetric, not finite, or negative.
    """
    (adjacency_VV,) = read_arrays(url, "adjacency")
    if adjacency_VV.ndim != 2 or adjacency_VV.shape[0] != adjacency_VV.shape[1] or not len(adjacency_VV):
        raise ConfigError(f"adjacency in {url} has shape {tuple(adjacency_VV.shape)}; it must be square, (n, n).")
    if bool((adjacency_VV < 0).any()):
        raise ConfigError(f"adjacency in {url} has weights that are negative; give similarities >= 0.")
    if not torch.equal(adjacency_VV, adjacency_VV.T):
        raise ConfigError(f"adjacency in {url} is not symmetric; give (A + A.T) / 2 if edges have no direction.")
    return walk_graph(adjacency_VV)


def walk_graph(adjacency_VV: torch.Tensor) -> WalkGraph:
    """Return the edges of a symmetric matrix of weights."""
    sources_E, ends_E = adjacency_VV.nonzero(as_tuple=True)
    degrees_V = adjacency_VV.sum(dim=1)
    shares_VV = adjacency_VV.cumsum(dim=1) / torch.where(degrees_V == 0, 1.0, degrees_V).unsqueeze(1)
    counts_V = (adjacency_VV != 0).sum(dim=1)
    return WalkGraph(
        degrees_V=torch.where(degrees_V == 0, 1.0, degrees_V),
        starts_V1=torch.cat((counts_V.new_zeros(1), counts_V.cumsum(0))),
        ends_E=ends_E,
        keys_E=sources_E + shares_VV[sources_E, ends_E],
    )


def _ratio(function: str, step: int) -> float:
    """Return f_l / f_(l-1) of the series f whose square is the function."""
    if function == "exponential":
        return 1 / (2 * step)
    if function == "inverse":
        return (2 * step - 1) / (2 * step)
    return 1.0 if function == "inverse_square" or step == 1 else 0.0
