"""The solve stage: coefficients of a kernel system, their predictions on every split, and the evidence."""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch

from ntkpipe.configs.canonical import digest
from ntkpipe.configs.solve.base import SolveBase
from ntkpipe.configs.solve.tiled import TileCholeskySolve
from ntkpipe.configs.solve.union import SolveConfig
from ntkpipe.storage import layout
from ntkpipe.storage.objects import npy_bytes, put_object
from ntkpipe.storage.records import ObjectRecord
from ntkpipe.storage.solutions import SolutionRecord
from ntkpipe.storage.solver_state import SolveProgress, SolverStates
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.solvers.base import AbstractSolver
from ntkpipe.workers.solvers.checkpoint import StoredCheckpoint, place
from ntkpipe.workers.solvers.direct.tiled import TileCholeskySolver
from ntkpipe.workers.solvers.registry import make_solver
from ntkpipe.workers.solvers.solution import Solution
from ntkpipe.workers.solvers.solve import Solve, balanced_weights, scaled_ridge, targets_of
from ntkpipe.workers.solvers.validation import Validation, prediction_loss
from ntkpipe.workers.solvers.watcher import Report, Watcher
from ntkpipe.workers.stages.factor import StoredFactor
from ntkpipe.workers.tasks import SolveTask, Written

STATS_DIGITS = 6
"""Shares of a pass add up differently when workers share them; the record says the same."""


def compute(context: WorkerContext, task: SolveTask) -> Written:
    """Solve one system and write coefficients, predictions and the evidence.

    Memory is that of the solver, plus at most ``CACHE_BYTES`` of tiles or features. An attempt that was killed is taken
    up where it last stored its state, which the driver deletes once the solution is committed.
    """
    geometry = context.spec.geometry
    config = section(context, task.name)
    kept = kept_solve(context, config)
    solution = kept.solve.run()
    num_samples = geometry.splits[geometry.train_split].num_samples
    written = _write(context, config, solution, num_samples, num_targets(context, task.name))
    del context.kept_solves[config.name]
    return written


def kept_solve(context: WorkerContext, config: SolveConfig) -> "KeptSolve":
    """Return the solve of a solution, which a worker sets up once however many tasks it is made of; the last one only."""
    kept = context.kept_solves.get(config.name)
    if kept is None:
        context.kept_solves.clear()  # tiles and features of another solution, which it may never come back to
        kept = context.kept_solves[config.name] = _make(context, config)
    assert isinstance(kept, KeptSolve)
    return kept


@final
@dataclass(frozen=True, slots=True)
class KeptSolve:
    """A solve, where its positions are stored, and who is told of them."""

    solve: Solve
    states: SolverStates
    watcher: Watcher


def _make(context: WorkerContext, config: SolveConfig) -> KeptSolve:
    states = SolverStates(context.store, config.name, digest(config.semantic()))
    train, width = context.spec.geometry.train_split, num_targets(context, config.name)
    operator = context.operators.operator(config.kernel, train, of_features=config.needs == "features")
    targets_NT = _targets(context, config, train, width)
    # A kernel of (sample, output) pairs has one unknown for each pair and a single right-hand side.
    right = targets_NT if operator.size == len(targets_NT) else targets_NT.reshape(operator.size, 1)
    weights_N = None
    if config.class_weight == "balanced":
        weights_N = balanced_weights(targets_NT).repeat_interleave(len(right) // len(targets_NT))
    solver = _solver(context, config)

    def tell(report: Report) -> None:
        position = report.position
        states.report(
            SolveProgress(
                place=place(position),
                num_parts=report.num_parts,
                finished=position.state.status is not None,
                text=str(report),
            )
        )

    watcher = Watcher(solver, operator, getattr(config, "tolerance", None), tell)
    solve = Solve(
        solver,
        operator,
        right,
        scaled_ridge(operator, config.ridge, config.ridge_scale, weights_N),
        weights_N=weights_N,
        validation=_validation(context, config, width),
        checkpoint=StoredCheckpoint(states),
        checkpoint_seconds=context.spec.config.resources.checkpoint_seconds,
        observe=watcher.observe,
    )
    return KeptSolve(solve, states, watcher)


def _solver(context: WorkerContext, config: SolveConfig) -> AbstractSolver[Any]:
    if isinstance(config, TileCholeskySolve):
        factor = context.spec.geometry.factor(config.name)
        return TileCholeskySolver(config, StoredFactor(context.chunks, context.ledger, factor))
    return make_solver(config)


def section(context: WorkerContext, name: str) -> SolveConfig:
    """Return the section of a solution."""
    return context.spec.config.solve[context.spec.geometry.solutions.index(name)]


def num_targets(context: WorkerContext, name: str) -> int:
    """Return T of a solution."""
    geometry = context.spec.geometry
    return geometry.solution_targets[geometry.solutions.index(name)]


def _validation(context: WorkerContext, config: SolveConfig, width: int) -> Validation | None:
    early_stopping = getattr(config, "early_stopping", None)
    if early_stopping is None:
        return None
    split, train = early_stopping.split, context.spec.geometry.train_split
    return Validation(
        context.operators.between(config.kernel, split, train),
        _targets(context, config, split, width),
        classes=config.targets == "one-hot",
        patience=early_stopping.patience,
        outputs=context.spec.geometry.matrix(config.kernel)[0].width,
    )


def _targets(context: WorkerContext, config: SolveBase, split: str, width: int) -> torch.Tensor:
    """Return the (N, T) targets of a solution."""
    labels = context.samples.labels(split)
    assert labels is not None, "the probe refuses solutions without labels"
    return targets_of(config, torch.from_numpy(np.array(labels)), width)


def _write(context: WorkerContext, config: SolveConfig, solution: Solution, num_samples: int, width: int) -> Written:
    geometry = context.spec.geometry
    alpha_NT = solution.alpha.reshape(num_samples, width)
    chunks = [context.chunks.write(layout.solution(config.name), (0, 0), alpha_NT.numpy())]
    losses = {}
    for split in geometry.predicted_splits(config.name):
        kernel = (
            None
            if split == geometry.train_split
            else context.operators.between(config.kernel, split, geometry.train_split)
        )
        predictions = solution.fitted if kernel is None else kernel.matmat(solution.alpha)
        predictions_MT = predictions.reshape(-1, width)
        chunks.append(context.chunks.write(layout.prediction(config.name, split), (0, 0), predictions_MT.numpy()))
        if geometry.splits[split].width(config.targets) == width:
            targets_MT = _targets(context, config, split, width)
            losses[split] = prediction_loss(predictions_MT, targets_MT, classes=config.targets == "one-hot")
    objects = [_put_record(context, config, solution, losses)]
    for name, values in solution.extras.items():
        objects.append(put_object(context.store, layout.solution_extra(config.name, name), npy_bytes(values.numpy())))
    return Written(tuple(chunks), tuple(objects))


def _put_record(
    context: WorkerContext, config: SolveConfig, solution: Solution, losses: dict[str, float]
) -> ObjectRecord:
    certificate = solution.certificate
    record = SolutionRecord(
        name=config.name,
        kernel=config.kernel,
        method=solution.method,
        status=solution.status,
        ridge=solution.ridge,
        jitter=solution.jitter,
        equation=certificate.equation,
        residuals=tuple(solution.residuals.tolist()),
        backward_errors=tuple(certificate.backward_errors.tolist()),
        flags=certificate.flags,
        chosen=context.spec.choices.get(config.name, ""),
        # Times differ between two runs that are otherwise the same; a receipt tells them.
        stats={
            name: round(value, STATS_DIGITS)
            for name, value in solution.stats.items()
            if name != "seconds" and math.isfinite(value)
        },
        classes=config.targets == "one-hot",
        losses=losses,
        extras=tuple(solution.extras),
    )
    return put_object(context.store, layout.solution_record(config.name), record.encode())
