"""In which order kernel blocks are handed out, and how often features are read for it."""

from collections import OrderedDict
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkpipe.pipeline.scheduling.blocks import BlockQueue, planned_reads, strip_height, strips
from ntkpipe.pipeline.scheduling.queue import ChainedQueue, TaskQueue
from ntkpipe.storage.grid import blocks, num_blocks, shards
from ntkpipe.storage.records import Geometry, KernelGeometry, SplitGeometry
from ntkpipe.workers.tasks import FeaturesTask, KernelTask


def geometry(train=20, test=0, *, shard_rows=1, block_rows=2):
    splits = {"train": SplitGeometry(num_samples=train, labels="none", num_targets=0)}
    pairs = [("train", "train")]
    if test:
        splits["test"] = SplitGeometry(num_samples=test, labels="none", num_targets=0)
        pairs.append(("test", "train"))
    return Geometry(
        splits=splits,
        train_split="train",
        kernels=(KernelGeometry(name="pntk", kind="pntk", feature_dim=8, groups=()),),
        pairs=tuple(pairs),
        solutions=(),
        solution_targets=(),
        num_outputs=1,
        shard_rows=shard_rows,
        block_rows=block_rows,
        dtype="float32",
    )


def all_tasks(shape):
    sizes = {name: split.num_samples for name, split in shape.splits.items()}
    return [KernelTask(block) for r, c in shape.pairs for block in blocks(r, sizes[r], c, sizes[c], shape.block_rows)]


def total(shape):
    sizes = {name: split.num_samples for name, split in shape.splits.items()}
    return sum(num_blocks(r, sizes[r], c, sizes[c], shape.block_rows) for r, c in shape.pairs)


def queue_of(shape, height, *, wanted=lambda task: True, open_shards=(), num=None):
    return BlockQueue(shape, height, total(shape) if num is None else num, wanted, open_shards)


def emptied(queue, num_workers=1):
    """Hand out everything, in turn; returns the tasks of each worker."""
    found = [[] for _ in range(num_workers)]
    for turn in count():
        task = queue.pop(turn % num_workers)
        if task is None:
            assert queue.num_left == 0
            return found
        found[turn % num_workers].append(task)


def num_reads(tasks, kept_sides):
    """Count what a worker reads that keeps so many rows and columns."""
    kept, reads = OrderedDict(), 0
    for task in tasks:
        for side in {task.block.rows, task.block.columns}:
            reads += side not in kept
            kept[side] = None
            kept.move_to_end(side)
            if len(kept) > kept_sides:
                kept.popitem(last=False)
    return reads


@settings(max_examples=60, deadline=None)
@given(
    train=st.integers(1, 40),
    test=st.integers(0, 20),
    height=st.integers(1, 6),
    num_workers=st.integers(1, 5),
    share=st.integers(0, 4),
)
def test_every_block_that_is_wanted_is_handed_out_once(train, test, height, num_workers, share):
    shape = geometry(train, test)
    expected = [task for place, task in enumerate(all_tasks(shape)) if place % 5 >= share]
    names = {task.id for task in expected}
    queue = queue_of(shape, height, wanted=lambda task: task.id in names, num=len(names))
    found = [task for tasks in emptied(queue, num_workers) for task in tasks]
    assert sorted(task.id for task in found) == sorted(names)


@pytest.mark.parametrize("height", [1, 2, 3, 5])
def test_one_worker_reads_what_was_planned(height):
    shape = geometry(40, 12)
    (tasks,) = emptied(queue_of(shape, height))
    assert num_reads(tasks, height + 2) <= planned_reads(shape, height, 1)


@given(st.integers(1, 90), st.integers(0, 40), st.integers(1, 20))
def test_what_is_planned_is_what_strips_look_at(train, test, height):
    shape = geometry(train, test)
    looked_at = 0
    for strip in strips(shape, height):
        blocks = [task.block for index in strip.columns for task in strip.column(shape, index)]
        looked_at += len({block.rows for block in blocks} | {block.columns for block in blocks})
    assert planned_reads(shape, height, 1) == looked_at


@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 20), st.integers(1, 2000))
def test_no_number_of_workers_reads_more_than_both_sides_of_every_block(train, test, height, num_workers):
    shape = geometry(train, test)
    blocks = [
        task.block for strip in strips(shape, 1) for index in strip.columns for task in strip.column(shape, index)
    ]
    sides = sum(len({block.rows, block.columns}) for block in blocks)
    assert planned_reads(shape, height, num_workers) <= sides


def test_a_strip_of_several_rows_saves_most_of_the_reads():
    shape = geometry(60)
    (tasks,) = emptied(queue_of(shape, 8))
    without_memory = sum(1 if task.block.on_diagonal else 2 for task in tasks)
    assert num_reads(tasks, 10) * 6 < without_memory


def test_several_workers_read_little_more_than_was_planned():
    shape = geometry(120)
    found = emptied(queue_of(shape, 8), 4)
    reads = sum(num_reads(tasks, 10) for tasks in found)
    # Who takes half of a strip reads its rows again.
    assert planned_reads(shape, 8, 1) * 0.8 < reads < planned_reads(shape, 8, 1) * 1.3
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_strips_hold_every_block_once():
    shape = geometry(23, 9)
    found = [task.id for strip in strips(shape, 3) for index in strip.columns for task in strip.column(shape, index)]
    assert sorted(found) == sorted(task.id for task in all_tasks(shape))


def test_strips_are_as_high_as_memory_and_the_number_of_workers_allow():
    shape = geometry(64)  # 32 rows of blocks
    assert strip_height(shape, 10, 1) == 8
    assert strip_height(shape, 40, 4) == 11
    assert strip_height(shape, 40, 100) == 2
    assert strip_height(shape, 0, 1) == 1


def test_blocks_wait_for_their_shards_and_for_no_others():
    shape = geometry(8)  # four rows of two shards each
    todo = [FeaturesTask(shard) for shard in shards("train", 8, 1)]
    waiting = {(task.shard.split, task.shard.index) for task in todo}
    queue = ChainedQueue(TaskQueue(todo, 8), queue_of(shape, 2, open_shards=waiting), lambda: True)
    features = [queue.pop(0) for _ in range(8)]
    assert features == todo
    assert queue.pop(0) is None
    for task in todo[:3]:
        queue.finished(task)
    assert queue.pop(0).id == "train-train/000000-000000"
    assert queue.pop(0) is None
    queue.finished(todo[3])
    assert {queue.pop(0).id, queue.pop(0).id} == {"train-train/000001-000000", "train-train/000001-000001"}
    assert queue.pop(0) is None
    for task in todo[4:]:
        queue.finished(task)
    assert len([queue.pop(worker) for worker in (0, 1, 0, 1, 0, 1, 0)]) == 7
    assert queue.num_left == 0


def test_a_worker_whose_own_blocks_have_to_wait_takes_others():
    shape = geometry(8)
    queue = queue_of(shape, 1, open_shards={("train", 2)})
    assert queue.pop(0).id == "train-train/000000-000000"
    found = {queue.pop(worker).id for worker in (1, 2, 1, 2, 1)}
    assert not any("000001" in name for name in found)
    assert len(found) == 5
    assert queue.pop(0) is None
    queue.finished(FeaturesTask(next(s for s in shards("train", 8, 1) if s.index == 2)))
    assert len({queue.pop(0).id for _ in range(4)}) == 4


@pytest.mark.parametrize("height", [1, 2, 3])
def test_nothing_is_handed_out_while_no_row_has_all_its_shards(height):
    shape = geometry(6, shard_rows=2, block_rows=4)
    todo = [FeaturesTask(shard) for shard in shards("train", 6, 2)]
    queue = queue_of(shape, height, open_shards={(task.shard.split, task.shard.index) for task in todo})
    assert [queue.pop(worker) for worker in (0, 1, 0, 1)] == [None] * 4
    for task in todo:
        queue.finished(task)
    assert len([task for tasks in emptied(queue, 2) for task in tasks]) == total(shape)


def test_the_next_stage_is_not_begun_when_too_much_of_the_first_is_missing():
    shape = geometry(4)
    queue = ChainedQueue(TaskQueue([], 0), queue_of(shape, 1), lambda: False)
    assert queue.pop(0) is None
    assert queue.num_left == 3


def test_what_failed_comes_first():
    queue = queue_of(geometry(20), 2)
    failed = queue.pop(0)
    queue.pop(0)
    queue.push(failed)
    assert queue.num_left == total(geometry(20)) - 1
    assert queue.pop(1) == failed


def test_what_a_lost_worker_was_on_is_done_by_others():
    queue = queue_of(geometry(12), 6)
    first = queue.pop(0)
    rest = emptied_by(queue, 1)
    assert len({first.id, *rest}) == total(geometry(12))


def emptied_by(queue, worker):
    found = []
    while (task := queue.pop(worker)) is not None:
        found.append(task.id)
    return found
