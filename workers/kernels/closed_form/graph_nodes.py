"""Tangent kernels of infinitely wide graph networks, between the nodes of one graph."""

import io
from functools import cached_property
from typing import final
from zipfile import BadZipFile

import numpy as np
import torch

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.structured import GraphNodeConfig
from ntkpipe.storage.assets import read_asset
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.graphs import (
    Graphs,
    scaled_adjacency,
    tangent_covariance,
)


@final
class GraphNodeKernel(AbstractClosedForm):
    """The kernel of :class:`ntkpipe.configs.kernels.structured.GraphNodeConfig`; samples are indices of nodes.

    The matrix of all n nodes is computed when the first entry is asked for, and kept: aggregating mixes all of them, so
    that no part of it can be had alone. That takes O(num_blocks n^3) time and about six (n, n) matrices of memory, of
    which one remains.
    """

    def __init__(self, config: GraphNodeConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between nodes, integers (N,) or (N, 1), and (M,) or (M, 1).

        Raises:
            ConfigError: The samples are not indices of nodes, or the file does not hold a graph.
        """
        whole_VV = self.matrix
        rows = _indices(x, len(whole_VV))
        columns = rows if x2 is None else _indices(x2, len(whole_VV))
        return whole_VV[rows[:, None], columns]

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return every node's kernel with itself."""
        whole_VV = self.matrix
        return whole_VV.diagonal()[_indices(x, len(whole_VV))]

    @cached_property
    def matrix(self) -> torch.Tensor:
        """The (n, n) kernel of all nodes, computed once.

        Raises:
            ConfigError: The file does not hold a graph.
        """
        adjacency_VV, features_VF = _read_graph(self._config.graph)
        graph = Graphs(scaled_adjacency(adjacency_VV, self._config.scale), features_VF)
        whole_VV = tangent_covariance(self._config, graph)
        return (whole_VV + whole_VV.T) / 2


def _read_graph(location: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        with np.load(io.BytesIO(read_asset(location)), allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name].astype(np.float64)) for name in ("adjacency", "features")}
    except (KeyError, ValueError, OSError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{location} is not an npz file of numbers with 'adjacency', (n, n), and 'features', (n, F): {error}"
        ) from None
    adjacency_VV, features_VF = arrays["adjacency"], arrays["features"]
    num = len(adjacency_VV) if adjacency_VV.dim() else 0
    if adjacency_VV.shape != (num, num) or features_VF.dim() != 2 or len(features_VF) != num or num == 0:
        raise ConfigError(
            f"{location} must hold 'adjacency', (n, n), and 'features', (n, F), of one n >= 1; found "
            f"{tuple(adjacency_VV.shape)} and {tuple(features_VF.shape)}."
        )
    if not (torch.isfinite(adjacency_VV).all() and torch.isfinite(features_VF).all()):
        raise ConfigError(f"{location} holds numbers that are not finite; remove them.")
    return adjacency_VV, features_VF


def _indices(x: torch.Tensor, num_nodes: int) -> torch.Tensor:
    """Return samples as (N,) int64, whole numbers of any type."""
    flat_N = x.reshape(len(x)) if x.dim() == 1 or (x.dim() == 2 and x.shape[1] == 1) else None
    if flat_N is None or bool((flat_N != flat_N.round()).any()):
        raise ConfigError(
            f"kind 'gntk_node' takes one node index per sample, found samples of shape {tuple(x.shape[1:])}"
            f"{'' if flat_N is None else ' that are not whole numbers'}."
        )
    if len(flat_N) and not 0 <= int(flat_N.min()) <= int(flat_N.max()) < num_nodes:
        raise ConfigError(
            f"the graph has nodes 0 to {num_nodes - 1}, found indices {int(flat_N.min())} to {int(flat_N.max())}."
        )
    return flat_N.long()
