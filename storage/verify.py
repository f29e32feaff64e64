"""Re-reading every chunk of a run against its receipt."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.ledger import Ledger, object_checksum
from ntkpipe.storage.records import ObjectRecord, Receipt
from ntkpipe.storage.stores.base import AbstractStore


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a committed task."""

    stage: str
    task: str
    problem: str


@dataclass(frozen=True, slots=True)
class Checked:
    """One task that was looked at."""

    receipt: Receipt | None
    findings: tuple[Finding, ...]


def verify_tasks(chunks: ChunkStore, ledger: Ledger, stages: Iterable[str]) -> Iterator[Checked]:
    """Check every committed task of the given stages, one at a time; memory is O(chunk)."""
    for stage in stages:
        for task in sorted(ledger.committed(stage)):
            try:
                receipt = ledger.receipt(stage, task)
            except StorageError as error:
                yield Checked(None, (Finding(stage, task, error.message),))
                continue
            problems = [
                *(chunks.matches(record) for record in receipt.chunks),
                *(_object_problem(chunks.store, record) for record in receipt.objects),
            ]
            yield Checked(receipt, tuple(Finding(stage, task, text) for text in problems if text is not None))


def _object_problem(store: AbstractStore, record: ObjectRecord) -> str | None:
    data = store.get(record.key)
    if data is None:
        return f"{record.key} is missing"
    found = object_checksum(data)
    return None if found == record.crc32c else f"{record.key}: crc32c is {found}, committed was {record.crc32c}"
