"""Many receipts in one object, for runs with more tasks than a listing of single objects should have to name.

A segment is text, one document per line: a header with the ids of its tasks, then their receipts in the same order,
sorted. Header and receipts are sealed, and the header holds the checksum of all that follows it. A segment is written
once and never changed; to take a receipt out of it, a new one is written without it before the old one is deleted.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Literal, final

import google_crc32c

from ntkpipe.configs.canonical import canonical_json
from ntkpipe.configs.errors import StorageError
from ntkpipe.storage.documents import Record
from ntkpipe.storage.records import Receipt

Name = tuple[str, str]
"""Stage and task."""


class SegmentHeader(Record):
    """The first line of a segment."""

    schema_version: Literal[2] = 2
    key: str
    """Of the segment's object."""
    crc32c: str
    """Of all bytes after the header's line."""
    tasks: dict[str, tuple[str, ...]]
    """By stage."""
    seal: str = ""

    @property
    def names(self) -> Iterator[Name]:
        """Stage and task of every receipt, in the order of the lines."""
        return ((stage, task) for stage, tasks in self.tasks.items() for task in tasks)


@final
class Segment:
    """The receipts of a whole segment; memory is that of the object.

    Attributes:
        key: Its object.
        tasks: Ids of the tasks by stage.
    """

    def __init__(self, key: str, header: SegmentHeader, lines: list[bytes]) -> None:
        self.key = key
        self.tasks = {stage: frozenset(tasks) for stage, tasks in header.tasks.items()}
        self._lines = dict(zip(header.names, lines, strict=True))

    def line(self, stage: str, task: str) -> bytes:
        """Return the encoded receipt of a task that is in the segment."""
        return self._lines[stage, task]

    def without(self, names: frozenset[Name]) -> dict[Name, bytes]:
        """Return the lines of all other receipts."""
        return {name: line for name, line in self._lines.items() if name not in names}


def encode_segment(key: str, lines: Mapping[Name, bytes]) -> bytes:
    """Return a segment.

    Args:
        key: Its object.
        lines: By stage and task, encoded receipts in any layout.
    """
    names = sorted(lines)
    tasks: dict[str, list[str]] = {}
    for stage, task in names:
        tasks.setdefault(stage, []).append(task)
    body = b"".join(_line(lines[name]) for name in names)
    header = SegmentHeader(
        key=key,
        crc32c=f"{google_crc32c.value(body):08x}",
        tasks={stage: tuple(found) for stage, found in tasks.items()},
    )
    return _line(header.encode()) + body


def parse_segment(data: bytes, key: str, url: str) -> Segment:
    """Read a segment.

    Args:
        data: Its content.
        key: Its object.
        url: Of the run, for messages.

    Raises:
        StorageError: It is damaged; names it and says what to do.
    """
    first, _, body = data.partition(b"\n")
    try:
        header = SegmentHeader.parse(first, "its header")
    except StorageError as error:
        raise damaged_segment(key, url, error.message) from None
    if header.key != key:
        raise damaged_segment(key, url, f"it is a copy of {header.key}.")
    lines = body.splitlines()
    if f"{google_crc32c.value(body):08x}" != header.crc32c or len(lines) != sum(map(len, header.tasks.values())):
        raise damaged_segment(key, url, "its receipts fail their checksum.")
    return Segment(key, header, lines)


def damaged_segment(key: str, url: str, why: str) -> StorageError:
    """Return the error of a segment that cannot be relied on."""
    return StorageError(
        f"{url}/{key}, which says which tasks are finished, is damaged: {why} `ntkpipe verify --repair` keeps what is "
        "whole of it and computes the rest again."
    )


def salvage(data: bytes) -> tuple[dict[Name, bytes], frozenset[Name]]:
    """Return the lines that are whole of a damaged segment, and the other tasks that its header names if it is whole."""
    first, *lines = data.splitlines() or [b""]
    whole: dict[Name, bytes] = {}
    for line in lines:
        try:
            receipt = Receipt.parse(line, "")
        except StorageError:
            continue
        if receipt.seal:
            whole[receipt.stage, receipt.task] = line
    try:
        named = frozenset(SegmentHeader.parse(first, "").names)
    except StorageError:
        named = frozenset()
    return whole, named - whole.keys()


def parse_receipt(data: bytes, stage: str, task: str, where: str) -> Receipt:
    """Read the receipt of a task.

    Raises:
        StorageError: It is damaged, of an unknown version, or another task's.
    """
    receipt = Receipt.parse(data, where)
    if (receipt.stage, receipt.task) != (stage, task):
        raise StorageError(
            f"{where} is not the receipt of {stage} task {task} but of {receipt.stage} task {receipt.task}. "
            "`ntkpipe verify --repair` computes the task again."
        )
    return receipt


def _line(document: bytes) -> bytes:
    """Return a document on one line; its seal holds for every layout."""
    return canonical_json(json.loads(document)).encode() + b"\n"
