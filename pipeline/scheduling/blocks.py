"""The order in which kernel blocks are handed out, so that workers find the features they need in their memory.

A block needs the features of its rows and of its columns. A worker works on a strip, a few rows of blocks, from the left
to the right, column by column: with the rows of its strip and two columns in memory it reads every row once and every column
once per strip. Strips are given to workers as they come; who has none left takes half of the longest one that is left, from
its end. So every worker reads about ``rows + columns`` of its strips, where without any memory it would be two per block.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import final

from ntkpipe.pipeline.scheduling.queue import AbstractQueue
from ntkpipe.storage.grid import Block, num_blocks, num_chunks, shard_at
from ntkpipe.storage.records import Geometry
from ntkpipe.workers.tasks import FeaturesTask, KernelTask, Task


def strip_height(geometry: Geometry, kept_sides: int, num_workers: int) -> int:
    """Return how many rows of blocks a strip has.

    The share of a worker is about a square then, unless its memory is too small: of all shapes, a square needs the fewest rows
    and columns. Strips of which there are fewer than workers are halved.

    Args:
        geometry: Of the run.
        kept_sides: Rows and columns of blocks whose features fit in a worker's memory; at most two for kernels without them.
        num_workers: That share the strips.
    """
    sizes = {name: split.num_samples for name, split in geometry.splits.items()}
    total = sum(num_blocks(r, sizes[r], c, sizes[c], geometry.block_rows) for r, c in geometry.pairs)
    return max(1, min(kept_sides - 2, math.isqrt(total // num_workers)))


def planned_reads(geometry: Geometry, height: int, num_workers: int) -> int:
    """Return how many times the features of a row or a column of blocks are read.

    Every strip stays with one worker, or with several of which each reads its rows; at the most every block reads both of
    its sides. It takes no longer for more samples.
    """
    total = num_strips = needed = 0
    for row_split, column_split in geometry.pairs:
        rows, columns = (
            num_chunks(geometry.splits[split].num_samples, geometry.block_rows) for split in (row_split, column_split)
        )
        step = _even_height(rows, height)
        num = num_chunks(rows, step)
        # A strip of a symmetric matrix has as many columns as there are rows down to its end.
        total += rows + (step * num * (num - 1) // 2 if row_split == column_split else num * columns)
        num_strips += num
        # A block on the diagonal has one side.
        needed += rows * rows if row_split == column_split else 2 * rows * columns
    return min(needed, total + height * max(0, num_workers - num_strips))


@dataclass(slots=True)
class Strip:
    """Some rows of blocks of one matrix, and which of their columns are left."""

    row_split: str
    column_split: str
    rows: range
    columns: range

    @property
    def is_triangular(self) -> bool:
        """Whether only columns up to each row belong to it."""
        return self.row_split == self.column_split

    def column(self, geometry: Geometry, index: int) -> Iterator[KernelTask]:
        """Yield the blocks of one column, from the top."""
        step = geometry.block_rows
        num_rows, num_columns = (geometry.splits[name].num_samples for name in (self.row_split, self.column_split))
        for row in self.rows:
            if not self.is_triangular or index <= row:
                yield KernelTask(
                    Block(
                        shard_at(self.row_split, row, num_rows, step),
                        shard_at(self.column_split, index, num_columns, step),
                    )
                )


def strips(geometry: Geometry, height: int) -> Iterator[Strip]:
    """Yield the strips of all matrices of a run; together they hold every block once."""
    for row_split, column_split in geometry.pairs:
        num_rows, num_columns = (
            num_chunks(geometry.splits[split].num_samples, geometry.block_rows) for split in (row_split, column_split)
        )
        step = _even_height(num_rows, height)
        for start in range(0, num_rows, step):
            rows = range(start, min(start + step, num_rows))
            columns = range(rows.stop if row_split == column_split else num_columns)
            yield Strip(row_split, column_split, rows, columns)


def _even_height(num_rows: int, height: int) -> int:
    """Return the height of as many strips as there are at a height: equal ones read less than high ones and a low one."""
    return num_chunks(num_rows, num_chunks(num_rows, height))


@dataclass(slots=True)
class _Lane:
    """What a worker is on: blocks to be handed out next, and the rest of its strip."""

    strip: Strip
    blocks: deque[KernelTask] = field(default_factory=deque)
    is_waiting: bool = False
    """Whether nobody is on it."""


@final
class BlockQueue(AbstractQueue):
    """The kernel tasks of a run that are to be done, each once.

    Args:
        geometry: Of the run.
        height: Of strips.
        num_left: How many of them are to be done.
        is_wanted: Whether a task is one of those.
        open_shards: Features tasks that blocks have to wait for, by split and index.
    """

    def __init__(
        self,
        geometry: Geometry,
        height: int,
        num_left: int,
        is_wanted: Callable[[KernelTask], bool],
        open_shards: Collection[tuple[str, int]] = (),
    ) -> None:
        self._geometry = geometry
        self._is_wanted = is_wanted
        self._num_left = num_left
        self._again: deque[Task] = deque()
        self._strips = strips(geometry, height)
        self._lanes: dict[int, _Lane] = {}
        # Of nobody: what is next on them has to wait for shards.
        self._waiting: list[_Lane] = []
        self._open = set(open_shards)
        # Those that somebody is on, by what was left of them when that was last looked at.
        self._by_length: list[tuple[int, int, _Lane]] = []
        self._order = itertools.count()

    @property
    def num_left(self) -> int:
        """How many tasks there are."""
        return self._num_left

    def pop(self, worker: int) -> Task | None:
        """Take the next block of the worker's strip that can be started, of a new strip, or of somebody else's."""
        for _ in range(len(self._again)):
            if self._can_start(self._again[0]):
                self._num_left -= 1
                return self._again.popleft()
            self._again.rotate(-1)
        while True:
            lane = self._lanes.get(worker)
            task = None if lane is None else self._next(lane)
            if task is not None:
                self._num_left -= 1
                return task
            if lane is not None and (lane.blocks or lane.strip.columns):
                lane.is_waiting = True
                self._waiting.append(self._lanes.pop(worker))
            found = self._lane_that_waited() or self._new_lane()
            if found is None:
                return self._from_any(worker)
            found.is_waiting = False
            self._lanes[worker] = found
            heapq.heappush(self._by_length, (-len(found.strip.columns), next(self._order), found))

    def push(self, task: Task) -> None:
        """Put one back."""
        self._again.append(task)
        self._num_left += 1

    def clear(self) -> None:
        """Forget all of them."""
        self._strips, self._num_left = iter(()), 0
        self._lanes.clear()
        self._waiting.clear()
        self._by_length.clear()
        self._again.clear()

    def finished(self, task: Task) -> None:
        """Let blocks go that had to wait for a shard."""
        if isinstance(task, FeaturesTask):
            self._open.discard((task.shard.split, task.shard.index))

    def _next(self, lane: _Lane) -> KernelTask | None:
        """Take the first block of a lane that can be started; columns are opened until there is one."""
        while self._has_rows(lane):
            for place, task in enumerate(lane.blocks):
                if self._can_start(task):
                    del lane.blocks[place]
                    return task
            if not lane.strip.columns:
                return None
            self._open_column(lane)
        return None

    def _open_column(self, lane: _Lane) -> None:
        strip = lane.strip
        index, strip.columns = strip.columns[0], strip.columns[1:]
        for task in strip.column(self._geometry, index):
            if self._is_wanted(task):
                lane.blocks.append(task)

    def _lane_that_waited(self) -> _Lane | None:
        """Take a lane that can go on now."""
        for place, lane in enumerate(self._waiting):
            if self._has_rows(lane) and (lane.strip.columns or any(map(self._can_start, lane.blocks))):
                return self._waiting.pop(place)
        return None

    def _new_lane(self) -> _Lane | None:
        """Take a strip that nobody is on, or the further half of what is left of the longest one."""
        strip = next(self._strips, None)
        if strip is None:
            longest = self._longest()
            if longest is None:
                return None
            middle = longest.columns.start + len(longest.columns) // 2
            strip = replace(longest, columns=range(middle, longest.columns.stop))
            longest.columns = range(longest.columns.start, middle)
        return _Lane(strip)

    def _longest(self) -> Strip | None:
        """Return the strip of a worker of which the most is left; None if there is none with a column left.

        It takes O(log workers) on the average.
        """
        by_length = self._by_length
        while by_length:
            length, order, lane = by_length[0]
            columns = lane.strip.columns
            if not columns or lane.is_waiting:
                heapq.heappop(by_length)
            elif -length == len(columns):
                return lane.strip
            else:  # strips only become shorter
                heapq.heapreplace(by_length, (-len(columns), order, lane))
        return None

    def _from_any(self, worker: int) -> KernelTask | None:
        """Take a block that somebody else would get to last."""
        others = [lane for owner, lane in self._lanes.items() if owner != worker]
        for lane in sorted(others, key=lambda lane: -len(lane.blocks)):
            for place in range(len(lane.blocks) - 1, -1, -1):
                if self._can_start(lane.blocks[place]):
                    task = lane.blocks[place]
                    del lane.blocks[place]
                    self._num_left -= 1
                    return task
        return None

    def _has_rows(self, lane: _Lane) -> bool:
        """Return whether there is a row of blocks of which the shards are committed; without one nothing can be started."""
        if not self._open:
            return True
        split, step = lane.strip.row_split, self._geometry.block_rows
        num = self._geometry.splits[split].num_samples
        return any(self._is_there(split, row * step, min((row + 1) * step, num)) for row in lane.strip.rows)

    def _can_start(self, task: Task) -> bool:
        """Return whether all shards that a block looks at are committed."""
        if not self._open or not isinstance(task, KernelTask):
            return True
        rows, columns = task.block.rows, task.block.columns
        return self._is_there(rows.split, rows.start, rows.stop) and self._is_there(
            columns.split, columns.start, columns.stop
        )

    def _is_there(self, split: str, start: int, stop: int) -> bool:
        """Return whether the shards of a range of samples are committed."""
        rows = self._geometry.shard_rows
        return not any((split, index) in self._open for index in range(start // rows, -(-stop // rows)))
