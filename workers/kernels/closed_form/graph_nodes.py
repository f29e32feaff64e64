"""Tangent kernels of infinitely wide graph networks, between the nodes of one graph."""

from typing import final

import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.structured import GraphNodeConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.files import read_arrays
from ntkpipe.workers.kernels.closed_form.graphs import Graphs, scaled_adjacency, tangent_covariance
from ntkpipe.workers.kernels.closed_form.samples import node_indices


@final
class GraphNodeKernel(AbstractClosedForm):
    """The kernel of :class:`ntkpipe.configs.kernels.structured.GraphNodeConfig`; samples are indices of nodes.

    The matrix of all n nodes is computed when the first entry is asked for, and kept: aggregating mixes all of them, so
    that no part of it can be had alone. That takes O(num_blocks n^3) time and about six (n, n) matrices of memory, of
    which one remains.
    """

    def __init__(self, config: GraphNodeConfig) -> None:
        self._config = config
        self._computed: torch.Tensor | None = None

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between nodes, whole numbers (N,) or (N, 1), and (M,) or (M, 1).

        Raises:
            ConfigError: The samples are not indices of nodes, or the file does not hold a graph.
        """
        whole_VV = self.matrix(x.device)
        rows = node_indices(x, len(whole_VV))
        columns = rows if x2 is None else node_indices(x2, len(whole_VV))
        return whole_VV[rows[:, None], columns]

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return every node's kernel with itself."""
        whole_VV = self.matrix(x.device)
        return whole_VV.diagonal()[node_indices(x, len(whole_VV))]

    def matrix(self, device: torch.device | None = None) -> torch.Tensor:
        """Return the (n, n) kernel of all nodes, computed once, on a device or the CPU.

        Raises:
            ConfigError: The file does not hold a graph.
        """
        device = device or torch.device("cpu")
        if self._computed is None or self._computed.device != device:
            adjacency_VV, features_VF = (numbers.to(device) for numbers in _read_graph(self._config.graph))
            graph = Graphs(scaled_adjacency(adjacency_VV, self._config.scale), features_VF)
            whole_VV = tangent_covariance(self._config, graph)
            self._computed = (whole_VV + whole_VV.T) / 2
        return self._computed


def _read_graph(location: str) -> tuple[torch.Tensor, torch.Tensor]:
    adjacency_VV, features_VF = read_arrays(location, "adjacency", "features")
    num = len(adjacency_VV) if adjacency_VV.dim() else 0
    if adjacency_VV.shape != (num, num) or features_VF.dim() != 2 or len(features_VF) != num or num == 0:
        raise ConfigError(
            f"{location} must hold 'adjacency', (n, n), and 'features', (n, F), of one n >= 1; found "
            f"{tuple(adjacency_VV.shape)} and {tuple(features_VF.shape)}."
        )
    return adjacency_VV, features_VF
