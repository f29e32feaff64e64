"""The solve stage: coefficients of a kernel system on stored tiles, and their predictions on every split."""

import numpy as np
import torch

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
    reader = context.kernel_reader(config.kernel, train, train, cache_bytes=CACHE_BYTES)
    operator = BlockedOperator(reader)
    labels = context.samples.labels(train)
    assert labels is not None, "the probe refuses solutions without labels"
    targets = torch.from_numpy(np.array(labels))
    if config.targets == "one-hot":
        targets_NT = one_hot_targets(targets, geometry.solution_targets[index])
    else:
        targets_NT = targets.double().reshape(operator.size, -1)
    ridge = scaled_ridge(operator, config.ridge, config.ridge_scale)
    solution = solve_operator(make_solver(config), operator, targets_NT, ridge)
    chunks = [context.chunks.write(layout.solution(task.name), (0, 0), solution.alpha.numpy())]
    for rows, columns in geometry.pairs:
        if columns == train:
            predictions = (
                operator.matmat(solution.alpha) if rows == train else _predict(context, task, solution.alpha, rows)
            )
            chunks.append(context.chunks.write(layout.prediction(task.name, rows), (0, 0), predictions.numpy()))
    record = SolutionRecord(
        name=task.name,
        kernel=config.kernel,
        method=solution.method,
        status=solution.status,
        ridge=solution.ridge,
        jitter=solution.jitter,
        residuals=tuple(solution.residuals.tolist()),
        stats={name: value for name, value in solution.stats.items() if name != "seconds"},
    )
    return Written(tuple(chunks), (put_object(context.store, layout.solution_record(task.name), record.encode()),))


def _predict(context: WorkerContext, task: SolveTask, alpha_NT: torch.Tensor, split: str) -> torch.Tensor:
    """Return K(split, train) alpha, tile by tile."""
    geometry = context.spec.geometry
    kernel = next(solve.kernel for solve in context.spec.config.solve if solve.name == task.name)
    reader = context.kernel_reader(kernel, split, geometry.train_split, cache_bytes=0)
    num_rows, num_columns = reader.shape
    predictions_MT = torch.zeros(num_rows, alpha_NT.shape[1], dtype=alpha_NT.dtype)
    step = geometry.block_rows
    for row in range(num_chunks(num_rows, step)):
        for column in range(num_chunks(num_columns, step)):
            tile = torch.from_numpy(np.array(reader.tile(row, column), dtype=np.float64))
            predictions_MT[row * step : (row + 1) * step] += tile @ alpha_NT[column * step : (column + 1) * step]
    return predictions_MT
