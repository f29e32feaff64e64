"""The solve stage: coefficients of a kernel system on stored tiles, and their predictions on every split."""

import math

import numpy as np
import torch

from ntkpipe.configs.solve.base import SolveBase
from ntkpipe.storage import layout
from ntkpipe.storage.grid import num_chunks
from ntkpipe.storage.ledger import put_object
from ntkpipe.storage.records import SolutionRecord
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.operators.blocked import BlockedOperator
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.solve import one_hot_targets, scaled_ridge, solve_operator
from ntkpipe.workers.tasks import SolveTask, Written

CACHE_BYTES = 2 * 2**30
"""Decoded tiles of a matrix up to this size are read from storage once, however many passes a solver takes."""


def compute(context: WorkerContext, task: SolveTask) -> Written:
    """Solve one system and write coefficients, predictions and the evidence.

    Memory is that of the solver, plus at most ``CACHE_BYTES`` of tiles.
    """
    geometry = context.spec.geometry
    index = geometry.solutions.index(task.name)
    config, train = context.spec.config.solve[index], geometry.train_split
    operator = BlockedOperator(context.matrices.matrix(config.kernel, train, train, cache_bytes=CACHE_BYTES))
    targets_NT = _targets(context, config, geometry.solution_targets[index])
    num_samples, num_targets = targets_NT.shape
    # A kernel of (sample, output) pairs has one unknown for each pair and a single right-hand side.
    flattened = operator.size != num_samples
    right = targets_NT.reshape(operator.size, 1) if flattened else targets_NT
    ridge = scaled_ridge(operator, config.ridge, config.ridge_scale)
    solution = solve_operator(make_solver(config), operator, right, ridge)
    alpha_NT = solution.alpha.reshape(num_samples, num_targets)
    chunks = [context.chunks.write(layout.solution(task.name), (0, 0), alpha_NT.numpy())]
    for rows, columns in geometry.pairs:
        if columns == train:
            predictions = solution.fitted if rows == train else _predict(context, config.kernel, solution.alpha, rows)
            predictions = predictions.reshape(-1, num_targets)
            chunks.append(context.chunks.write(layout.prediction(task.name, rows), (0, 0), predictions.numpy()))
    record = SolutionRecord(
        name=task.name,
        kernel=config.kernel,
        method=solution.method,
        status=solution.status,
        ridge=solution.ridge,
        jitter=solution.jitter,
        residuals=tuple(solution.residuals.tolist()),
        stats={name: value for name, value in solution.stats.items() if name != "seconds" and math.isfinite(value)},
    )
    return Written(tuple(chunks), (put_object(context.store, layout.solution_record(task.name), record.encode()),))


def _targets(context: WorkerContext, config: SolveBase, num_targets: int) -> torch.Tensor:
    """Return the (N, T) targets of a solution."""
    train = context.spec.geometry.train_split
    labels = context.samples.labels(train)
    assert labels is not None, "the probe refuses solutions without labels"
    targets = torch.from_numpy(np.array(labels))
    if config.targets == "one-hot":
        return one_hot_targets(targets, num_targets)
    return targets.double().reshape(len(targets), -1)


def _predict(context: WorkerContext, kernel: str, alpha_NT: torch.Tensor, split: str) -> torch.Tensor:
    """Return K(split, train) alpha, tile by tile."""
    matrix = context.matrices.matrix(kernel, split, context.spec.geometry.train_split, cache_bytes=0)
    predictions_MT = torch.zeros(matrix.shape[0], alpha_NT.shape[1], dtype=alpha_NT.dtype)
    for row in range(num_chunks(matrix.shape[0], matrix.block_rows)):
        for column in range(num_chunks(matrix.shape[1], matrix.block_rows)):
            tile = torch.from_numpy(np.array(matrix.tile(row, column), dtype=np.float64))
            predictions_MT[matrix.span(row)] += tile @ alpha_NT[matrix.span(column, axis=1)]
    return predictions_MT
