"""Re-reading what a run has stored: metadata, receipts, and every chunk and object against its receipt."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import PREPARE_STAGE, PREPARE_TASK
from ntkpipe.storage.ledger import Entry, Ledger
from ntkpipe.storage.metadata import ArraySpec, documents, problems
from ntkpipe.storage.objects import object_checksum
from ntkpipe.storage.records import SCHEMA_VERSION, ChunkRecord, Manifest, ObjectRecord, Receipt
from ntkpipe.storage.stores.base import AbstractStore

MAX_THREADS = 8
"""That read and sum chunks at a time, one chunk each."""

TASKS_PER_THREAD = 4
"""Tasks that are looked ahead for each of them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with what is stored."""

    stage: str
    """Of the task; ``segments`` for a segment."""
    task: str
    """Its id; the object of a segment."""
    problem: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A task, or an object that many tasks share, that was looked at."""

    receipt: Receipt | None
    """None if it cannot be read, and for shared objects."""
    findings: tuple[Finding, ...]


def verify_metadata(store: AbstractStore, manifest: Manifest, specs: Iterable[ArraySpec]) -> Iterator[Checked]:
    """Check what zarr needs to know of a prepared run: its group, the groups in it, its arrays."""
    expected = documents(specs, {"schema_version": SCHEMA_VERSION})
    root = f"{layout.DATA}/zarr.json"
    for number in range(manifest.schema_version, SCHEMA_VERSION):
        # A driver of a later version says so when it continues a run.
        earlier = documents((), {"schema_version": number})[root]
        if store.get(root) == earlier:
            expected[root] = earlier
    exactly = manifest.versions.get("zarr") == version("zarr")
    for key, problem in problems(store, expected, exactly=exactly):
        yield Checked(None, (Finding(PREPARE_STAGE, PREPARE_TASK, f"{key} {problem}"),))


def verify_segments(ledger: Ledger) -> Iterator[Checked]:
    """Check that all segments can be read, and name the tasks whose receipts are lost where one cannot."""
    for key, (problem, lost) in ledger.damaged_segments().items():
        tasks = (Finding(*name, f"its receipt was in {key}, which is damaged") for name in sorted(lost))
        yield Checked(None, (Finding(layout.SEGMENTS, key, problem), *tasks))


def verify_tasks(
    chunks: ChunkStore, ledger: Ledger, planned: Iterable[tuple[str, frozenset[str]]], *, threads: int | None = None
) -> Iterator[Checked]:
    """Check every committed task: its receipt, chunks and objects.

    Memory is O(threads x chunk + ids of tasks).

    Args:
        chunks: The arrays of the run.
        ledger: Its receipts; those of its last listing are checked.
        planned: The stages of the run with the ids of their tasks. What is committed beside them is reported.
        threads: That read and sum at a time; about as many as there are processors by default.
    """
    num_threads = threads or min(MAX_THREADS, 2 * len(os.sched_getaffinity(0)))
    known: set[str] = set()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for stage, ids in planned:
            known.add(stage)
            yield from _verify_stage(chunks, ledger.entries(stage), ids, pool, TASKS_PER_THREAD * num_threads)
        for stage in ledger.stages():
            if stage not in known:
                yield from _verify_stage(chunks, ledger.entries(stage), frozenset(), pool, TASKS_PER_THREAD)
    finally:
        pool.shutdown(cancel_futures=True)


def _verify_stage(
    chunks: ChunkStore, entries: Iterable[Entry], planned: frozenset[str], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Checked]:
    """Yield the tasks of a stage in the order of their entries, reading ahead."""
    window: deque[tuple[Entry, list[Future[str | None]]]] = deque()
    for entry in entries:
        if entry.task not in planned:
            finding = Finding(entry.stage, entry.task, "has a receipt, but the run has no such task")
            yield Checked(entry.receipt, (finding,))
            continue
        written = entry.receipt.written if entry.receipt is not None else ()
        window.append((entry, [pool.submit(_problem, chunks, record) for record in written]))
        if len(window) > ahead:
            yield _checked(*window.popleft())
    while window:
        yield _checked(*window.popleft())


def _checked(entry: Entry, results: list["Future[str | None]"]) -> Checked:
    texts = [entry.problem, *(result.result() for result in results)]
    return Checked(entry.receipt, tuple(Finding(entry.stage, entry.task, text) for text in texts if text is not None))


def _problem(chunks: ChunkStore, record: ChunkRecord | ObjectRecord) -> str | None:
    """Compare what was written with its record; return what is wrong, None when nothing is.

    Raises:
        StorageError: The store does not answer, which says nothing about what it holds.
    """
    try:
        return _difference(chunks, record)
    except StorageError:
        chunks.store.read(layout.MANIFEST)  # which is not damaged: a store that gives this one gives the others
    try:
        return _difference(chunks, record)
    except StorageError as error:
        return error.message


def _difference(chunks: ChunkStore, record: ChunkRecord | ObjectRecord) -> str | None:
    if isinstance(record, ChunkRecord):
        return chunks.matches(record)
    data = chunks.store.get(record.key)
    if data is None:
        return f"{record.key} is missing"
    found = object_checksum(data)
    return None if found == record.crc32c else f"{record.key}: crc32c is {found}, committed was {record.crc32c}"
