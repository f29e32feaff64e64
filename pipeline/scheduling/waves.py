"""What is handed out together: the tasks of one stage, or of two of which the second starts as the first ends."""

from collections.abc import Callable, Mapping, Sequence

from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.scheduling.blocks import BlockQueue
from ntkpipe.pipeline.scheduling.queue import AbstractQueue, ChainedQueue, TaskQueue
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.grid import shards
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.workers.tasks import Task


def queue_of(
    plan: Plan,
    stages: Sequence[str],
    done: Mapping[str, frozenset[str]],
    height: int,
    may_go_on: Callable[[str], bool],
) -> AbstractQueue:
    """Return what is to be done, in the order in which it is best done.

    Args:
        plan: Of the run.
        stages: One of them, or two that overlap.
        done: Ids of finished tasks, by stage.
        height: Of strips of blocks.
        may_go_on: Whether so little of a stage is missing that the next one may be begun.
    """
    queues: list[AbstractQueue] = []
    for stage in stages:
        num_left, is_wanted = plan.num_tasks(stage) - len(done[stage]), _absent_from(done[stage])
        if stage == KERNEL_STAGE:
            waited_for = _open_shards(plan, done[FEATURES_STAGE]) if FEATURES_STAGE in done and num_left else set()
            queues.append(BlockQueue(plan.geometry, height, num_left, is_wanted, waited_for))
        else:
            queues.append(TaskQueue(filter(is_wanted, plan.tasks(stage)), num_left))
    if len(queues) == 1:
        return queues[0]
    first, then = queues
    return ChainedQueue(first, then, lambda: may_go_on(stages[0]))


def _open_shards(plan: Plan, done: frozenset[str]) -> set[tuple[str, int]]:
    """Return the shards that are about to be computed, and that blocks have to wait for."""
    geometry = plan.geometry
    found = (
        shard
        for split, shape in geometry.splits.items()
        for shard in shards(split, shape.num_samples, geometry.shard_rows)
    )
    return {(shard.split, shard.index) for shard in found if shard.task not in done}


def _absent_from(done: frozenset[str]) -> Callable[[Task], bool]:
    """Return a test for tasks that are not finished."""
    return lambda task: task.id not in done
