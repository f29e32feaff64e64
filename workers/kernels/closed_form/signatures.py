"""The untruncated signature kernel of paths, and the geometry that kernels of paths share."""

from typing import final

import torch

from ntkpipe.configs.errors import ConfigError, NumericalError
from ntkpipe.configs.kernels.structured import NeuralSignatureConfig, SignatureConfig
from ntkpipe.workers.kernels.closed_form.base import AbstractClosedForm
from ntkpipe.workers.kernels.closed_form.goursat import solve_scheme, solve_series
from ntkpipe.workers.kernels.closed_form.samples import as_doubles
from ntkpipe.workers.kernels.closed_form.tiling import mirrored, tiles

BATCH_BYTES = 32 * 2**20
"""Of the cells' second differences of one batch of pairs."""

MAX_PAIRS = 1024
"""Of one batch: the antidiagonals should fit a processor's cache."""

NORM_TOLERANCE = 0.01
"""By how much schemes may miss the lower bound of a signature's squared norm before they are not believed."""


@final
class SignatureKernel(AbstractClosedForm):
    """The kernel of :class:`ntkpipe.configs.kernels.structured.SignatureConfig`.

    Time is O(N M L^2 terms^2) by power series, O(N M L^2 4^o) by the scheme of order o; beside the result, memory is
    bounded by some ``BATCH_BYTES``. A path of one point has no increments and the kernel 1 with every path.

    The scheme is no kernel itself, only close to one: its matrices can have eigenvalues below zero by its error.
    """

    def __init__(self, config: SignatureConfig) -> None:
        self._config = config

    def block(self, x: torch.Tensor, x2: torch.Tensor | None = None) -> torch.Tensor:
        """Return the kernel between paths, (N, L, d) and (M, L', d).

        Raises:
            ConfigError: The samples are not paths, or of different dimensions.
            NumericalError: The kernel of two paths exceeds double precision, or a path's with itself is impossible.
        """
        x, other = as_paths(x, x2)
        block_NM = x.new_empty(len(x), len(other))
        for rows, columns in tiles(len(x), None if x2 is None else len(other), batch_size(x, other)):
            cells_IJB = pair_cells(x[rows], other[columns], self._config)
            block_NM[rows, columns] = self._solve(cells_IJB).reshape(-1, len(other[columns]))
        if x2 is not None:
            return finite(block_NM)
        _credible(finite(block_NM.diagonal()))
        return finite(mirrored(block_NM))

    def diagonal(self, x: torch.Tensor) -> torch.Tensor:
        """Return every path's kernel with itself, linear in N."""
        x, _ = as_paths(x, None)
        parts = [self._solve(self_cells(part, self._config)) for part in x.split(batch_size(x, x)) if len(part)]
        return _credible(finite(torch.cat([x.new_zeros(0), *parts])))

    def _solve(self, cells_IJB: torch.Tensor) -> torch.Tensor:
        order = self._config.dyadic_order
        return solve_series(cells_IJB) if order is None else solve_scheme(cells_IJB, order)


def as_paths(x: torch.Tensor, x2: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both sets of paths, (N, L, d) and (M, L', d) in float64; the second may be the first.

    Raises:
        ConfigError: They are no paths of at least one point and of one dimension, or a point is not finite.
    """
    for paths in (x,) if x2 is None else (x, x2):
        if paths.dim() != 3 or 0 in paths.shape[1:]:
            raise ConfigError(
                f"kernels of paths take samples of shape (points, dimension), found {tuple(paths.shape[1:])}; "
                "reshape the inputs, a series of numbers to (points, 1)."
            )
    if x2 is not None and x.shape[2] != x2.shape[2]:
        raise ConfigError(f"paths must have one dimension, found {x.shape[2]} and {x2.shape[2]}.")
    paths = as_doubles(x)
    return paths, paths if x2 is None else as_doubles(x2)


def pair_cells(x: torch.Tensor, x2: torch.Tensor, config: SignatureConfig | NeuralSignatureConfig) -> torch.Tensor:
    """Return the static kernel's second differences between all pairs of paths, (I, J, N M), pairs row by row."""
    if config.static == "linear":
        cells_NIMJ: torch.Tensor = torch.tensordot(x.diff(dim=1), x2.diff(dim=1), dims=([2], [2]))
    else:
        cells_NIMJ = _gaussian(x[:, :, None, None], x2, config.bandwidth or 1.0).diff(dim=1).diff(dim=3)
    return cells_NIMJ.permute(1, 3, 0, 2).flatten(2).mul(config.scale)


def self_cells(x: torch.Tensor, config: SignatureConfig | NeuralSignatureConfig) -> torch.Tensor:
    """Return the static kernel's second differences of every path with itself, (I, I, N)."""
    if config.static == "linear":
        steps_NId = x.diff(dim=1)
        cells_NIJ = steps_NId @ steps_NId.mT
    else:
        cells_NIJ = _gaussian(x[:, :, None], x[:, None], config.bandwidth or 1.0).diff(dim=1).diff(dim=2)
    return cells_NIJ.permute(1, 2, 0).mul(config.scale).contiguous()


def _gaussian(x: torch.Tensor, x2: torch.Tensor, bandwidth: float) -> torch.Tensor:
    """Return exp(-|x - x2|^2 / (2 w^2)) along the last dimension; coordinates one by one, so that it is never stored."""
    squares = torch.zeros(torch.broadcast_shapes(x.shape, x2.shape)[:-1], dtype=x.dtype, device=x.device)
    for coordinate in range(x.shape[-1]):
        squares += (x[..., coordinate] - x2[..., coordinate]).square_()
    return squares.mul_(-0.5 / bandwidth**2).exp_()


def batch_size(x: torch.Tensor, x2: torch.Tensor) -> int:
    """Return how many pairs of paths are worked on at a time."""
    cell_bytes = 8 * max(1, x.shape[1] * x2.shape[1])
    return max(1, min(MAX_PAIRS, BATCH_BYTES // cell_bytes))


def finite(values: torch.Tensor) -> torch.Tensor:
    """Return the values.

    Raises:
        NumericalError: One of them is not finite.
    """
    if not torch.isfinite(values).all():
        raise NumericalError(
            "the kernel of two paths exceeds double precision: it grows like exp(length x length). Give the kernel a "
            "smaller scale, or normalise the paths."
        )
    return values


def _credible(diagonal_N: torch.Tensor) -> torch.Tensor:
    """Return the squared norms of signatures, which are at least 1, their level zero.

    Raises:
        NumericalError: One of them is not.
    """
    if (diagonal_N < 1 - NORM_TOLERANCE).any():
        raise NumericalError(
            f"the squared norm of a signature came out as {float(diagonal_N.min()):.3g}, but is at least 1: its steps are "
            "too long for double precision, or for the grid. Give the kernel a smaller scale, or a larger dyadic order."
        )
    return diagonal_N
