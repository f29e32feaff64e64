"""Taking finished tasks over from another run: what would give the same bytes is copied instead of computed.

A task is taken over if the other run has committed one of the same name whose digests are those of the new one, for all
kernels that the new one serves. Chunks are copied under their own checksums and not read: a damaged one is found when
it is used, and by ``ntkpipe verify``, as it would be in the run that it comes from. One that is missing is not taken
over. The other run is never changed and may be running.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import final

from ntkpipe.configs.errors import NotFoundError, StorageError
from ntkpipe.pipeline.identity import NO_KERNEL, TaskIdentities
from ntkpipe.pipeline.plan import Plan
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import ORIGIN_TASK, PREPARE_STAGE
from ntkpipe.storage.ledger import Entry, Ledger
from ntkpipe.storage.records import SCHEMA_VERSION, ChunkRecord, Manifest, Receipt
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.stores.base import NUM_THREADS, AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.workers.tasks import Task

BATCH = 2_000
"""Tasks that are copied before they are committed together."""

OF_KERNELS = ("features", "diagonal", "moments", "kernel", "component", "statistic")
"""First parts of the paths of arrays that belong to a kernel, whose name is the second part."""


def take_over(
    origin: str,
    store: AbstractStore,
    plan: Plan,
    identities: TaskIdentities,
    ledger: Ledger,
    *,
    epoch: int,
    tell: Callable[[str], None],
    check: Callable[[], None],
) -> None:
    """Commit what another run has computed already. Memory is O(tasks of a stage); can be repeated after a kill.

    Args:
        origin: URL of the other run. If it is gone, everything is computed.
        store: Of the new run, whose arrays exist.
        plan: Of the new run.
        identities: Of its tasks.
        ledger: Of the new run.
        epoch: Of its driver.
        tell: Is told how much of each stage was taken over.
        check: Called again and again; raises when the driver must not go on.
    """
    if ledger.is_committed(PREPARE_STAGE, ORIGIN_TASK):
        return
    try:
        other = open_store(origin)
        Manifest.read(other)
    except StorageError as error:
        tell(f"nothing is taken over: {error.message}")
        return
    chunks = ChunkStore(store, specs=array_specs(plan.geometry))
    source, started = _Source(other, chunks, identities, epoch), time.perf_counter()
    for stage in plan.stages:
        committed, total = ledger.committed(stage), plan.num_tasks(stage)
        todo = {task.id: task for task in plan.tasks(stage) if task.id not in committed}
        taken = len(committed)
        for receipts in source.take(stage, todo):
            check()
            ledger.commit_many(receipts)
            taken += len(receipts)
        if total:
            tell(f"{stage} {taken:,}/{total:,} reused")
    if source.problem:
        tell(f"some tasks are computed again: {source.problem}")
    marker = Receipt(
        stage=PREPARE_STAGE,
        task=ORIGIN_TASK,
        chunks=(),
        seconds=time.perf_counter() - started,
        worker="driver",
        epoch=epoch,
        origin=other.url,
    )
    ledger.commit(marker)


@final
class _Source:
    """The run that tasks are taken from.

    Attributes:
        problem: What was wrong with the last task that could not be taken though it was committed; empty if nothing was.
    """

    def __init__(self, other: AbstractStore, chunks: ChunkStore, identities: TaskIdentities, epoch: int) -> None:
        self._other = other
        self._ledger = Ledger(other)
        self._chunks = chunks
        self._identities = identities
        self._epoch = epoch
        self.problem = ""

    def take(self, stage: str, tasks: dict[str, Task]) -> Iterator[list[Receipt]]:
        """Copy what is committed and equal, several tasks at a time; yield receipts, by the hundreds."""
        if not self._has_any(stage, tasks):
            return
        entries = (entry for entry in self._ledger.entries(stage) if entry.task in tasks)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            while part := list(islice(entries, BATCH)):
                copied = pool.map(lambda entry: self._copy(tasks[entry.task], entry), part)
                yield [receipt for receipt in copied if receipt is not None]

    def _has_any(self, stage: str, tasks: dict[str, Task]) -> bool:
        """Return whether some task may be there; names are listed, while all receipts would have to be read."""
        try:
            return not tasks.keys().isdisjoint(self._ledger.committed(stage))
        except StorageError:  # nobody can tell: a segment is damaged, of which the whole receipts are taken
            return True

    def _copy(self, task: Task, entry: Entry) -> Receipt | None:
        """Return the receipt of a task after its chunks were copied; None if it has to be computed."""
        old = entry.receipt
        if old is None:
            self.problem = entry.problem or ""
            return None
        if not old.made_from:
            self.problem = (
                f"receipts of {self._other.url} do not tell what tasks were made from: it is of an earlier version."
            )
            return None
        wanted = self._identities.of(task)
        if any(old.made_from.get(kernel) != text for kernel, text in wanted.items()):
            return None
        chunks = tuple(record for record in old.chunks if _kernel_of(record) in wanted)
        keys = [self._chunks.key(record.array, record.position) for record in chunks]
        try:
            for key in (*keys, *(record.key for record in old.objects)):
                self._chunks.store.copy(self._other, key, key)
        except NotFoundError as error:
            self.problem = error.message
            return None
        now = {"epoch": self._epoch, "attempt": 1, "committed_at": time.time(), "schema_version": SCHEMA_VERSION}
        return old.model_copy(update=now | {"chunks": chunks, "made_from": wanted, "origin": self._other.url})


def _kernel_of(record: ChunkRecord) -> str:
    what, name, *_ = record.array.split("/")
    return name if what in OF_KERNELS else NO_KERNEL
