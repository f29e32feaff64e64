"""All receipts of a run: which tasks are finished, and how a task becomes finished.

A receipt is an object of its own, ``receipts/<stage>/<task>.json``, created once; or a line of a segment, into which a
driver moves receipts when there are very many (see ``storage/segments.py``). Where a task has both, its own object counts.

* *Planning* asks for names: a task with a receipt is finished. An empty object, such as a power failure leaves, is no
  receipt. Nothing else is looked into, because one listing has to be enough for any number of tasks, and because a
  receipt was whole when it was created: that it was damaged later says nothing about the chunks.
* *Reading* a receipt checks its seal and that it belongs to the task that was asked for.
* A *segment* is read as a whole to know its tasks. One that is damaged is an error that names it, never a shorter list.
* *Compaction* writes a segment, then deletes the objects it replaces, and readers list objects first: at every moment
  each receipt is in one of them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Lock, RLock
from typing import final

from ntkpipe.configs.errors import ChunkNotReadyError, NotFoundError, StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.records import Failure, Receipt
from ntkpipe.storage.segment_index import SegmentIndex
from ntkpipe.storage.segments import Name, parse_receipt, salvage
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.sums import CommittedSums

COMPACT_BEYOND = 20_000
"""Receipts that may have objects of their own before a driver moves them: object stores list a few thousand a second."""

SEGMENT_RECEIPTS = 10_000
"""In a segment: some ten megabytes, which readers hold in memory one at a time."""

MANY_RECEIPTS = 1_000
"""Committed at once, so many are written as a segment."""

DELETED_AT_ONCE = 1_000
"""Receipts that are in a segment by now, between two looks at the lock: a successor may have committed them again."""

COMMITS_AT_ONCE = 16
"""Receipts that are under way to the store."""

STALE_HITS = 16
"""Finished tasks that the last listing did not know, found one by one, before there is another listing."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger holds of a task."""

    stage: str
    task: str
    receipt: Receipt | None
    problem: str | None = None
    """Why there is no receipt that can be relied on."""


@final
class Ledger:
    """Reads and writes receipts. Memory is O(ids of tasks + one segment). Thread safe.

    A listing is made when it is first needed, for all stages at once, and again by :meth:`refresh`.

    Attributes:
        sums: Checksums of committed chunks.
    """

    def __init__(self, store: AbstractStore) -> None:
        self._store = store
        self._own: dict[str, set[str]] = {}
        self._empty: set[Name] = set()
        self._segments = SegmentIndex(store)
        self.sums = CommittedSums(self.receipt, self.require)
        self._listed = False
        self._stale_hits = 0
        self._added: list[Name] | None = None
        self._lock = Lock()
        self._listing = RLock()

    def refresh(self) -> None:
        """List all receipts of all stages: their own objects first, then segments."""
        with self._listing:
            with self._lock:
                self._added = []
            own: dict[str, set[str]] = {}
            empty = set()
            for key, size in self._store.sizes(layout.RECEIPTS).items():
                name = layout.receipt_name(key)
                if name is not None and size:
                    own.setdefault(name[0], set()).add(name[1])
                elif name is not None:
                    empty.add(name)
            with self._lock:
                # What other threads have found or committed meanwhile may not be in the listing.
                for stage, task in self._added or ():
                    own.setdefault(stage, set()).add(task)
                self._added = None
                self._own, self._empty, self._listed, self._stale_hits = own, empty, True, 0
            self._segments.refresh()

    def stages(self) -> tuple[str, ...]:
        """Return the stages that have receipts, as of the last listing."""
        self._need_listing()
        with self._lock:
            own, empty = list(self._own), list(self._empty)
        return tuple(sorted({*own, *self._segments.stages(), *(stage for stage, _ in empty)}))

    def committed(self, stage: str) -> frozenset[str]:
        """Return the ids of a stage's finished tasks, as of the last listing and what was committed here since.

        Raises:
            StorageError: A segment is damaged, so that nobody can tell.
        """
        self._need_listing()
        self._segments.require_whole()
        # Own ones first: what is moved into a segment meanwhile is found there.
        return frozenset(self._own_tasks(stage)).union(*self._segments.tasks(stage))

    def commit(self, receipt: Receipt) -> bool:
        """Finish a task; False when another attempt has finished it before.

        Replaced is what cannot be read, as it would never commit the task, and the receipt of an earlier driver that
        came late and tells other checksums: its worker's chunks were written over.
        """
        key, data = layout.receipt(receipt.stage, receipt.task), receipt.encode()
        won = self._store.put_new(key, data)
        if not won and self._is_outdated(receipt):
            self._store.put(key, data)
            won = True
        self._add(receipt.stage, receipt.task)
        return won

    def commit_at_once(self, receipts: Sequence[Receipt]) -> None:
        """Finish several tasks side by side: in an object store a receipt is a round trip, which others can share."""
        if len(receipts) == 1:
            self.commit(receipts[0])
            return
        with ThreadPoolExecutor(min(len(receipts), COMMITS_AT_ONCE)) as threads:
            for _ in threads.map(self.commit, receipts):
                pass

    def commit_many(self, receipts: Iterable[Receipt]) -> None:
        """Finish many tasks that are not finished, with few objects where there are very many. They share an epoch."""
        remaining = iter(receipts)
        while group := list(islice(remaining, SEGMENT_RECEIPTS)):
            if len(group) < MANY_RECEIPTS:
                for receipt in group:
                    self.commit(receipt)
            else:
                lines = {(receipt.stage, receipt.task): receipt.encode() for receipt in group}
                self._segments.write(lines, group[0].epoch)

    def is_committed(self, stage: str, task: str) -> bool:
        """Return whether a task is finished; looks again before it says no.

        That takes one look for the receipt and one for new segments, however many receipts there are.

        Raises:
            StorageError: It may be in a segment that is damaged.
        """
        if self._knows(stage, task) or self._finds(stage, task):
            return True
        self._segments.refresh()
        if not self._knows(stage, task):
            self._segments.require_whole()
            return False
        return True

    def require(self, stage: str, task: str) -> None:
        """Refuse to go on unless a task is finished.

        Raises:
            ChunkNotReadyError: It has no receipt.
        """
        if not self.is_committed(stage, task):
            raise ChunkNotReadyError(
                f"{self._store.url}: {stage} task {task} is not committed yet; its chunks must not be read. "
                "See `ntkpipe status`, and finish the run with `ntkpipe resume`."
            )

    def fetch(self, stage: str, tasks: Sequence[str]) -> list[str]:
        """Have the checksums of several tasks at hand; return those that are not finished, in order.

        Takes a listing where it does not know many of them, and reads their receipts side by side.

        Raises:
            StorageError: One of the receipts, or a segment, is damaged.
        """
        wanted = [task for task in dict.fromkeys(tasks) if not self.sums.holds(stage, task)]
        if not wanted:
            return []
        unknown = [task for task in wanted if not self._knows(stage, task)]
        if len(unknown) > STALE_HITS:
            self.refresh()
        elif sum(self._finds(stage, task) for task in unknown) < len(unknown):  # all of them are looked for
            self._segments.refresh()
        missing = {task for task in wanted if not self._knows(stage, task)}
        if missing:
            self._segments.require_whole()
        known = [task for task in wanted if task not in missing]
        found = self._store.get_many(layout.receipt(stage, task) for task in known)
        for task, (key, data) in zip(known, found, strict=True):
            try:
                where = f"{self._store.url}/{key}"
                self.sums.keep(parse_receipt(data, stage, task, where) if data else self.receipt(stage, task))
            except NotFoundError:  # it was taken back since the last listing
                self._discard([(stage, task)])
                missing.add(task)
        return [task for task in wanted if task in missing]

    def receipt(self, stage: str, task: str) -> Receipt:
        """Read one receipt.

        Raises:
            NotFoundError: There is none.
            StorageError: It is damaged, or another task's.
        """
        key = layout.receipt(stage, task)
        data = self._store.get(key)
        if data:
            return parse_receipt(data, stage, task, f"{self._store.url}/{key}")
        if not self._segments.knows(stage, task):
            self._segments.refresh()
        for segment in self._segments.read(stage, task):
            return parse_receipt(segment.line(stage, task), stage, task, f"{self._store.url}/{segment.key}")
        self._segments.require_whole()
        return parse_receipt(self._store.read(key), stage, task, f"{self._store.url}/{key}")

    def receipts(self, stage: str) -> Iterator[Receipt]:
        """Yield the receipts of a stage's finished tasks, each once; sorted where they have objects of their own.

        Raises:
            StorageError: One of them, or a segment, is damaged.
        """
        for entry in self._held(stage):
            if entry.receipt is None:
                raise StorageError(f"{entry.problem} `ntkpipe verify --repair` computes its task again.")
            yield entry.receipt
        self._segments.require_whole()

    def entries(self, stage: str) -> Iterator[Entry]:
        """Yield what there is of a stage's tasks, what is damaged or empty included, each task once.

        What only a damaged segment holds is left out, see :meth:`damaged_segments`.
        """
        seen = set()
        for entry in self._held(stage):
            seen.add(entry.task)
            yield entry
        with self._lock:
            empty = sorted(self._empty)
        for name in empty:
            if name[0] == stage and name[1] not in seen:
                yield Entry(*name, None, f"{self._store.url}/{layout.receipt(*name)} is empty.")

    def damaged_segments(self) -> dict[str, tuple[str, frozenset[Name]]]:
        """Return, by the key of every segment that is damaged, what is wrong and which tasks are known to be lost."""
        self._need_listing()
        found = {}
        for key, problem in self._segments.damaged().items():
            _, lost = salvage(self._store.get(key) or b"")
            found[key] = problem, frozenset(name for name in lost if not self._knows(*name))
        return found

    def mend_segment(self, key: str) -> None:
        """Replace a damaged segment by one with the receipts of it that are whole. The caller holds the run's lock."""
        whole, _ = salvage(self._store.get(key) or b"")
        self._segments.replace(key, whole)

    def revoke(self, names: Iterable[Name]) -> None:
        """Take receipts back, so that their tasks count as not done. The caller holds the run's lock."""
        revoked = frozenset(names)
        self._store.delete_many(layout.receipt(*name) for name in sorted(revoked))
        self._discard(revoked)
        self._segments.refresh()
        for segment in list(self._segments.holding(revoked)):
            self._segments.replace(segment, self._segments.lines(segment, without=revoked))

    def compact(
        self,
        epoch: int,
        check: Callable[[], None],
        *,
        beyond: int = COMPACT_BEYOND,
        per_segment: int = SEGMENT_RECEIPTS,
    ) -> int:
        """Move receipts into segments when very many have objects of their own; return how many. Damaged ones stay.

        Args:
            epoch: Of the driver, which holds the run's lock.
            check: Raises when the driver has lost it.
            beyond: How many may have objects of their own.
            per_segment: How many share a segment; what is left over stays.
        """
        self._need_listing()
        with self._lock:
            names = sorted((stage, task) for stage, tasks in self._own.items() for task in tasks)
        if len(names) <= beyond:
            return 0
        moved = 0
        for start in range(0, len(names) - per_segment + 1, per_segment):
            group = names[start : start + per_segment]
            found = self._store.get_many(layout.receipt(*name) for name in group)
            lines = {
                name: data
                for name, (key, data) in zip(group, found, strict=True)
                if data is not None and self._entry(*name, data, key).problem is None
            }
            check()
            self._segments.write(lines, epoch)
            replaced = iter(lines)
            while part := list(islice(replaced, DELETED_AT_ONCE)):
                check()
                self._store.delete_many(layout.receipt(*name) for name in part)
                self._discard(part)
            moved += len(lines)
        return moved

    def record_failure(self, failure: Failure) -> None:
        """Keep what went wrong with an attempt."""
        key = layout.failure(failure.stage, failure.task, failure.epoch, failure.attempt)
        self._store.put(key, failure.encode())

    def _need_listing(self) -> None:
        with self._listing:
            if not self._listed:
                self.refresh()

    def _finds(self, stage: str, task: str) -> bool:
        """Look whether a task that is not known has a receipt of its own by now."""
        if not self._store.get(layout.receipt(stage, task)):  # or an empty one
            return False
        self._add(stage, task)
        with self._lock:
            self._stale_hits += 1
            # Each listing has to find enough to be worth its price, whatever the number of receipts.
            outdated = self._stale_hits > max(STALE_HITS, sum(map(len, self._own.values())) // STALE_HITS)
        if outdated:
            self.refresh()
        return True

    def _own_tasks(self, stage: str) -> list[str]:
        with self._lock:
            return list(self._own.get(stage, ()))

    def _add(self, stage: str, task: str) -> None:
        with self._lock:
            self._own.setdefault(stage, set()).add(task)
            if self._added is not None:
                self._added.append((stage, task))

    def _discard(self, names: Iterable[Name]) -> None:
        with self._lock:
            for stage, task in names:
                self._own.get(stage, set()).discard(task)

    def _knows(self, stage: str, task: str) -> bool:
        with self._lock:
            known = task in self._own.get(stage, ())
        return known or self._segments.knows(stage, task)

    def _held(self, stage: str) -> Iterator[Entry]:
        self._need_listing()
        own, seen = sorted(self._own_tasks(stage)), set()
        found = self._store.get_many(layout.receipt(stage, task) for task in own)
        for task, (key, data) in zip(own, found, strict=True):
            if data is not None:  # else it was moved into a segment a moment ago
                seen.add(task)
                yield self._entry(stage, task, data, key)
        self._segments.refresh()
        for segment in self._segments.read(stage):
            for task in sorted(segment.tasks[stage] - seen):
                seen.add(task)
                yield self._entry(stage, task, segment.line(stage, task), segment.key)

    def _is_outdated(self, receipt: Receipt) -> bool:
        """Return whether what lies at the place of a receipt does not tell of the chunks that are there."""
        key = layout.receipt(receipt.stage, receipt.task)
        found = self._entry(receipt.stage, receipt.task, self._store.get(key) or b"", key).receipt
        return found is None or (found.epoch < receipt.epoch and found.written != receipt.written)

    def _entry(self, stage: str, task: str, data: bytes, key: str) -> Entry:
        try:
            return Entry(stage, task, parse_receipt(data, stage, task, f"{self._store.url}/{key}"))
        except StorageError as error:
            return Entry(stage, task, None, error.message)
