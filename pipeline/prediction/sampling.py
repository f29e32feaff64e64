"""Times a few tasks of a job on real workers, side by side, and compares them with the roofline."""

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final, final

from ntkpipe.configs.calibration import StageCalibration
from ntkpipe.pipeline.execution import prepare, worker_spec
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.prediction.durations import TASK_SECONDS, Durations
from ntkpipe.storage.features import FEATURES_STAGE, MOMENTS_STAGE
from ntkpipe.storage.grid import Block, Shard, num_chunks, shard_at
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Geometry, Receipt
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.calibration import Session, Timing, time_tasks
from ntkpipe.workers.probing.probe import Probe
from ntkpipe.workers.tasks import FeaturesTask, KernelTask, Task, WorkerSpec

STAGE_SECONDS: Final = 2.0
"""Of timing tasks of a stage, on every worker."""

MAX_BLOCKS: Final = 3
"""Rows of blocks, and columns, that are computed."""

LEAST_SHARE: Final = 0.05
"""Of a task's time that is taken for its own work, however fast the store should have been."""


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """A few tasks of a job.

    Args:
        store: Of a scratch run.
        plan: Of the job.
        probe: That the plan was made from.
        num_workers: That work side by side, each in a process of its own.
        threads: Of each.
    """

    store: AbstractStore
    plan: Plan
    probe: Probe
    num_workers: int
    threads: int | None

    def measure(self, durations: Durations) -> tuple[float, dict[str, StageCalibration]]:
        """Time tasks of the features and of the kernel stage.

        Returns:
            Seconds until a worker can take a task, and the stages by name.

        Raises:
            NtkPipeError: A task fails.
        """
        ledger = Ledger(self.store)
        prepare(self.store, ledger, self.probe, 0)
        sample = sampled_tasks(self.plan.geometry)
        found: dict[str, StageCalibration] = {}
        begun, start = time.time(), 0.0
        with ExitStack() as stack:
            # One pool for each worker, so that each has a process of its own.
            context = multiprocessing.get_context("spawn")
            pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(self.num_workers)]
            if moments := list(self.plan.tasks(MOMENTS_STAGE)) if MOMENTS_STAGE in self.plan.stages else []:
                commit(ledger, pools[0].submit(time_tasks, self._spec, moments, 0.0, 1).result().timings)
            for stage, tasks in sample.items():
                sessions = self._side_by_side(pools, tasks)
                commit(ledger, [timing for session in sessions for timing in session.timings])
                start = start or max(session.ready_at for session in sessions) - begun
                found[stage] = compared(durations, sessions)
        return start, found

    @property
    def _spec(self) -> WorkerSpec:
        return replace(worker_spec(self.store, self.plan, self.probe), threads=self.threads)

    def _side_by_side(self, pools: Sequence[ProcessPoolExecutor], tasks: Sequence[Task]) -> list[Session]:
        # Everybody starts elsewhere, and goes once round.
        places = [index * len(tasks) // len(pools) for index in range(len(pools))]
        turns = [[*tasks[place:], *tasks[:place]] for place in places]
        futures = [
            pool.submit(time_tasks, self._spec, turn, STAGE_SECONDS) for pool, turn in zip(pools, turns, strict=True)
        ]
        return [future.result() for future in futures]


def sampled_tasks(geometry: Geometry) -> dict[str, list[Task]]:
    """Return some tasks of each stage, those of the kernel stage from the features of the others."""
    pair = geometry.pairs[0] if geometry.pairs else (geometry.train_split, geometry.train_split)
    reach = MAX_BLOCKS * geometry.block_rows
    features: list[Task] = []
    for split in dict.fromkeys(pair):
        size, step = geometry.splits[split].num_samples, geometry.shard_rows
        last = num_chunks(min(size, reach), step)
        features += [FeaturesTask(shard_at(split, index, size, step)) for index in range(last)]
    if not geometry.pairs:
        return {FEATURES_STAGE: features}
    rows, columns = (list(_sides(geometry, split)) for split in pair)
    kernel: list[Task] = [
        KernelTask(Block(row, column))
        for row in rows
        for column in columns
        if pair[0] != pair[1] or column.index <= row.index
    ]
    return {FEATURES_STAGE: features, KERNEL_STAGE: kernel}


def _sides(geometry: Geometry, split: str) -> Iterator[Shard]:
    size, step = geometry.splits[split].num_samples, geometry.block_rows
    for index in range(min(MAX_BLOCKS, num_chunks(size, step))):
        yield shard_at(split, index, size, step)


def commit(ledger: Ledger, timings: Sequence[Timing]) -> None:
    """Commit tasks, each once, so that the next stage may read what they wrote."""
    for timing in {timing.task: timing for timing in timings}.values():
        result = timing.result
        ledger.commit(
            Receipt(
                stage=timing.task.stage,
                task=timing.task.id,
                chunks=result.chunks,
                objects=result.objects,
                seconds=result.seconds,
                worker=result.worker,
                versions=result.versions,
            )
        )


def compared(durations: Durations, sessions: Sequence[Session]) -> StageCalibration:
    """Return how a stage's tasks took beside what the roofline says of the same tasks."""
    found, extra = [], []
    for session in sessions:
        pieces = list(_pieces(durations, session.timings))
        first, rest = pieces[0], pieces[1:]
        slowness = statistics.median(piece.own / piece.rated for piece in rest)
        extra.append(max(0.0, first.seconds - first.moved - first.rated * slowness))
        found += rest
    return StageCalibration(
        seconds=statistics.median(piece.seconds for piece in found),
        predicted=statistics.median(piece.moved + piece.rated for piece in found),
        efficiency=1 / statistics.median(piece.own / piece.rated for piece in found),
        first_seconds=statistics.median(extra),
        num_tasks=len(found),
    )


@final
@dataclass(frozen=True, slots=True)
class _Piece:
    """A timed task, taken apart."""

    seconds: float
    moved: float
    """Predicted for the store, and for what any task takes."""
    rated: float
    """Of computing, by the roofline."""

    @property
    def own(self) -> float:
        """Seconds that were left for computing."""
        return max(self.seconds - self.moved, LEAST_SHARE * self.seconds)


def _pieces(durations: Durations, timings: Sequence[Timing]) -> Iterator[_Piece]:
    before: Task | None = None
    for timing in timings:
        times, result = durations.times(timing.task), timing.result
        moved = durations.read_seconds(result.bytes_read, result.chunks_read) + times.write + TASK_SECONDS
        kept = times.kept if _same_rows(before, timing.task) else 0.0
        before = timing.task
        yield _Piece(result.seconds, moved, times.compute - TASK_SECONDS - kept)


def _same_rows(before: Task | None, task: Task) -> bool:
    return isinstance(before, KernelTask) and isinstance(task, KernelTask) and before.block.rows == task.block.rows
