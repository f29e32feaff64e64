"""Signature kernels that depend on an activation: infinitely wide controlled residual networks."""

from typing import final

import torch

from ntkpipe.configs.kernels.structured import NeuralSignatureConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.duals.covariances import covariance_dual
from ntkpipe.workers.kernels.closed_form.signatures import (
    as_paths,
    batch_size,
    finite,
    pair_cells,
    self_cells,
)
from ntkpipe.workers.kernels.closed_form.tiling import mirrored, tiles


@final
class NeuralSignatureKernel(AbstractClosedForm):
    """The kernel of :class:`ntkpipe.configs.kernels.structured.NeuralSignatureConfig` by its first-order scheme.

    What a cell adds depends on the row before only, so that a row is a cumulative sum: for a batch of pairs, one vector
    operation per row. The kernel of every path with itself along its own diagonal comes first, O(N L^2 4^o) for the
    dyadic order o; then all pairs take O(N M L^2 4^o). On the grid the scheme is the kernel of an infinitely wide network
    with one residual layer per step, hence positive semi-definite, whatever the order. A path of one point has the kernel
    1 with every path.
    """

    def __init__(self, config: NeuralSignatureConfig) -> None:
        self._config = config
        self._mean = covariance_dual(config.activation)

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between paths, (N, L, d) and (M, L', d).

        Raises:
            ConfigError: The samples are not paths, or of different dimensions.
            NumericalError: The kernel of two paths exceeds double precision.
        """
        x, other = as_paths(x, x2)
        own_IN = self._own(x)
        own_JM = own_IN if x2 is None else self._own(other)
        block_NM = x.new_empty(len(x), len(other))
        for rows, columns in tiles(len(x), None if x2 is None else len(other), batch_size(x, other)):
            a_IN, c_JM = own_IN[:, rows], own_JM[:, columns]
            cells_IJB = pair_cells(x[rows], other[columns], self._config)
            a_IB = a_IN.repeat_interleave(c_JM.shape[1], dim=1)
            c_JB = c_JM.repeat(1, a_IN.shape[1])
            block_NM[rows, columns] = self._solve(cells_IJB, a_IB, c_JB).reshape(a_IN.shape[1], -1)
        if x2 is not None:
            return finite(block_NM)
        block_NM.diagonal().copy_(own_IN[-1])
        return finite(mirrored(block_NM))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return every path's kernel with itself."""
        x, _ = as_paths(x, None)
        return finite(self._own(x)[-1].clone())

    def _own(self, x: torch.Tensor) -> torch.Tensor:
        """Return K_xx at (i, i) of all paths and all nodes of the fine grid, (I + 1, N)."""
        parts = [self._solve_own(self_cells(part, self._config)) for part in x.split(batch_size(x, x)) if len(part)]
        num_nodes = ((x.shape[1] - 1) << self._config.dyadic_order) + 1
        return torch.cat([x.new_zeros(num_nodes, 0), *parts], dim=1)

    def _solve_own(self, cells_IIB: torch.Tensor) -> torch.Tensor:
        """Solve a path against itself, square by square: K at (m + 1, b) needs K at (b, b) for b <= m only."""
        order = self._config.dyadic_order
        cells_IIB = cells_IIB / 4**order
        num_steps, num_pairs = cells_IIB.shape[1] << order, cells_IIB.shape[2]
        own_IB = cells_IIB.new_ones(num_steps + 1, num_pairs)
        row_JB = cells_IIB.new_ones(num_steps + 1, num_pairs)
        columns = torch.arange(num_steps, device=cells_IIB.device) >> order
        for m in range(num_steps):
            cells_JB = cells_IIB[m >> order].index_select(0, columns[: m + 1])
            added_JB = self._dual(own_IB[m], row_JB[: m + 1], own_IB[: m + 1]).mul_(cells_JB)
            corner_B = row_JB[m] - added_JB[m]
            row_JB[1 : m + 1] += added_JB[:m].cumsum(0)
            row_JB[m + 1] = 2 * row_JB[m] - corner_B
            own_IB[m + 1] = row_JB[m + 1]
        return own_IB

    def _solve(self, cells_IJB: torch.Tensor, a_IB: torch.Tensor, c_JB: torch.Tensor) -> torch.Tensor:
        """Return K in the far corner, (B,), given the diagonals of both paths."""
        order = self._config.dyadic_order
        cells_IJB = cells_IJB / 4**order
        columns = torch.arange(cells_IJB.shape[1] << order, device=cells_IJB.device) >> order
        row_JB = torch.ones_like(c_JB)
        for i in range(cells_IJB.shape[0] << order):
            added_JB = self._dual(a_IB[i], row_JB[:-1], c_JB[:-1])
            row_JB[1:] += added_JB.mul_(cells_IJB[i >> order].index_select(0, columns)).cumsum(0)
        return row_JB[-1]

    def _dual(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        """Return weight_variance E[s(u) s(v)] + bias_variance, a tensor of its own."""
        return self._mean(a, b, c).mul_(self._config.weight_variance).add_(self._config.bias_variance)
