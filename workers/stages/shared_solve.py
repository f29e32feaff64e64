"""A solve whose steps are shared between workers: each adds a part, one of them finishes the step.

Parts and states are objects of the run without receipts. A state counts when it is stored; parts count only for the
state that they belong to. What is lost with a worker is computed again, to the same bits, because sums run over the
parts in their order whoever computed them.
"""

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
    """Compute one part of the step after a state; nothing if the step has been taken already."""
    kept = kept_solve(context, section(context, task.name))
    loop, position = kept.solve.loop, kept.solve.loop.take_up()
    if position is None or place(position) != task.place or kept.states.has_part(task.place, task.part):
        return NOTHING
    assert isinstance(loop.solver, AbstractPartitionedSolver)
    passes, bytes_read = loop.read
    summand = loop.solver.partial(loop.system, position.state, task.part)
    read = {"passes": loop.read[0] - passes, "bytes_read": loop.read[1] - bytes_read}
    kept.states.put_part(task.place, task.part, summand.cpu().numpy(), read)
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
    num_parts, read = loop.solver.num_parts(loop.system.operator), {"passes": 0.0, "bytes_read": 0.0}
    if not all(kept.states.has_part(before, part) for part in range(num_parts)):
        return None
    total: torch.Tensor | None = None
    for part in range(num_parts):
        found = kept.states.part(before, part)
        if found is None:
            kept.states.clear_parts(before)  # a damaged one would be in the way for ever
            return None
        summand = torch.from_numpy(found[0])
        total = summand if total is None else ordered_sum([total, summand])
        read = {name: count + found[1][name] for name, count in read.items()}
    assert total is not None
    position = _keep(kept, loop.absorb(position, total, **read))
    kept.states.clear_parts(before)
    return position


def _keep(kept: KeptSolve, position: Position) -> Position:
    StoredCheckpoint(kept.states).save(position)
    return position
