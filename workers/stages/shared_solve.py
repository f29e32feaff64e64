"""A solve whose steps are shared between workers: each adds a part, one of them finishes the step.

Parts and states are objects of the run without receipts. A state counts when it is stored; parts count only for the
state that they belong to. What is lost with a worker is computed again, to the same bits, because sums run over the
parts in their order whoever computed them.
"""

import time

import torch

from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.operators.base import ordered_sum
from ntkpipe.workers.solvers.base import AbstractPartitionedSolver
from ntkpipe.workers.solvers.checkpoint import StoredCheckpoint, place
from ntkpipe.workers.solvers.loop import Position
from ntkpipe.workers.stages.solve import KeptSolve, kept_solve, section
from ntkpipe.workers.tasks import SolvePartTask, SolveStepTask, Written

NOTHING = Written(chunks=())


def compute_part(context: WorkerContext, task: SolvePartTask) -> Written:
    """Compute one part of the step after a state; nothing if the step has been taken already, or the state has it."""
    kept = kept_solve(context, section(context, task.name))
    loop, position = kept.solve.loop, kept.solve.loop.take_up()
    if position is None or place(position) != task.place or task.part < position.parts:
        return NOTHING
    if kept.states.has_parts(task.place, [task.part]):
        return NOTHING
    assert isinstance(loop.solver, AbstractPartitionedSolver)
    passes, bytes_read = loop.read
    started = time.perf_counter()
    summand = loop.solver.partial(loop.system, position.state, task.part)
    # Workers do this side by side, so that a part takes its share of a worker's time.
    seconds = (time.perf_counter() - started) / context.spec.config.resources.num_workers
    spent = {"passes": loop.read[0] - passes, "bytes_read": loop.read[1] - bytes_read, "seconds": seconds}
    kept.states.put_part(task.place, task.part, summand.cpu().numpy(), spent)
    return NOTHING


def take_step(context: WorkerContext, task: SolveStepTask) -> Written:
    """Set the solver up, or take the step whose parts are all there; tells the driver what is to be done next."""
    kept = kept_solve(context, section(context, task.name))
    position = kept.solve.loop.take_up()
    if position is None:
        position = _keep(kept, kept.solve.loop.set_up())
    elif position.state.status is None:
        position = _absorb(kept, position) or position
    kept.watcher.report(position)
    return NOTHING


def _absorb(kept: KeptSolve, position: Position) -> Position | None:
    """Take the step after a position; None if one of its parts is not there."""
    loop, before = kept.solve.loop, place(position)
    assert isinstance(loop.solver, AbstractPartitionedSolver)
    num_parts, spent = (
        loop.solver.num_parts(loop.system.operator),
        dict.fromkeys(("passes", "bytes_read", "seconds"), 0.0),
    )
    # A solve that was not shared before may have been stored within a step, with the sum of its first parts.
    parts, total = range(position.parts, num_parts), position.total
    if not kept.states.has_parts(before, parts):
        return None
    for part in parts:
        found = kept.states.part(before, part)
        if found is None:
            kept.states.clear_parts(before)  # a damaged one would be in the way for ever
            return None
        summand = torch.from_numpy(found[0])
        total = summand if total is None else ordered_sum([total, summand])
        spent = {name: amount + found[1][name] for name, amount in spent.items()}
    assert total is not None
    position = _keep(kept, loop.absorb(position, total, **spent))
    kept.states.clear_parts(before)
    return position


def _keep(kept: KeptSolve, position: Position) -> Position:
    StoredCheckpoint(kept.states).save(position)
    return position
