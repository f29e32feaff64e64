"""The derive stage: what a derived kernel needs of whole rows of the matrix it is made of."""

import numpy as np
import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.configs.kernels.derived import PosteriorConfig
from ntkpipe.storage import layout
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.picking import Positions
from ntkpipe.storage.records import KernelGeometry
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.tasks import DeriveTask, Written

CACHE_BYTES = 512 * 2**20


def compute(context: WorkerContext, task: DeriveTask) -> Written:
    """Write means, or coordinates in a posterior, of a range of samples.

    Memory is O(tile) for means; K(S, S) and K(rows, S) for a posterior.
    """
    kernel = context.spec.geometry.kernel(task.kernel)
    if isinstance(kernel.derived, PosteriorConfig):
        statistic_BS = _coordinates(context, task, kernel, kernel.derived)
    else:
        statistic_BS = _means(context, task, kernel)
    position = (task.rows.index, 0)
    return Written((context.chunks.write(layout.statistic(task.kernel, task.rows.split), position, statistic_BS),))


def _means(
    context: WorkerContext, task: DeriveTask, kernel: KernelGeometry
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Return the mean of every row over the training split, tile by tile."""
    train = context.spec.geometry.train_split
    matrix = context.matrices.matrix(kernel.parents[0], task.rows.split, train, cache_bytes=0)
    sums_B = np.zeros(len(task.rows))
    for column in range(num_chunks(matrix.shape[1], matrix.block_rows)):
        sums_B += matrix.any_tile(task.rows.index, column).sum(axis=1, dtype=np.float64)
    return (sums_B / matrix.shape[1])[:, None]


def _coordinates(
    context: WorkerContext, task: DeriveTask, kernel: KernelGeometry, config: PosteriorConfig
) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    """Return L^-1 K(S, x) with L L^T = K(S, S) + noise I."""
    train, given = context.spec.geometry.train_split, given_positions(context, config)
    factor_SS = _factor(context, kernel, config, given)
    rows = np.arange(task.rows.start, task.rows.stop)
    matrix = context.matrices.matrix(kernel.parents[0], task.rows.split, train, cache_bytes=CACHE_BYTES)
    cross_SB = torch.from_numpy(matrix.read(rows, given).astype(np.float64)).T
    solved_BS = torch.linalg.solve_triangular(factor_SS, cross_SB, upper=False).T
    coordinates_BS: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = solved_BS.contiguous().numpy()
    return coordinates_BS


def _factor(context: WorkerContext, kernel: KernelGeometry, config: PosteriorConfig, given: Positions) -> torch.Tensor:
    """Return L; kept by the worker, because every task of the kernel needs it."""
    if kernel.name not in context.kept_choleskys:
        train = context.spec.geometry.train_split
        matrix = context.matrices.matrix(kernel.parents[0], train, train, cache_bytes=CACHE_BYTES)
        gram_SS = torch.from_numpy(matrix.read(given, given).astype(np.float64))
        gram_SS = (gram_SS + gram_SS.T) / 2
        gram_SS.diagonal().add_(config.noise)
        factor_SS, info = torch.linalg.cholesky_ex(gram_SS)
        if int(info):
            raise NumericalError(
                f"kernel {kernel.name!r}: K(S, S) + noise I of {kernel.parents[0]!r} is not positive definite. Raise noise "
                f"above {config.noise}."
            )
        context.kept_choleskys = {kernel.name: factor_SS}
    return context.kept_choleskys[kernel.name]


def given_positions(context: WorkerContext, config: PosteriorConfig) -> Positions:
    """Return the positions in the training split of what a posterior is conditioned on."""
    train = context.spec.geometry.train_split
    num_samples = context.spec.geometry.splits[train].num_samples
    if isinstance(config.given, tuple):
        places = {name: position for position, name in enumerate(context.samples.sample_ids(train))}
        return np.array([places[name] for name in config.given], dtype=np.int64)
    return np.arange(min(config.given or num_samples, num_samples))
