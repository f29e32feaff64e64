"""Which segments a run has, and which receipts are in them. One segment is held in memory at a time."""

from collections.abc import Iterator, Mapping
from threading import RLock
from typing import final

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.segments import Name, Segment, damaged_segment, encode_segment, parse_segment
from ntkpipe.storage.stores.base import AbstractStore


@final
class SegmentIndex:
    """The segments of a run as of the last look; memory is O(ids of tasks + one segment). Thread safe."""

    def __init__(self, store: AbstractStore) -> None:
        self._store = store
        self._tasks: dict[str, dict[str, frozenset[str]]] = {}
        self._sizes: dict[str, int] = {}
        self._damaged: dict[str, StorageError] = {}
        self._open: Segment | None = None
        self._lock = RLock()

    def refresh(self) -> None:
        """Look which segments there are, and read those that are new."""
        with self._lock:
            complete = False
            while not complete:
                sizes = self._store.sizes(layout.SEGMENTS)
                keys = [key for key in sizes if key.endswith(layout.SEGMENT_SUFFIX)]
                # A name whose last segment was taken away as a whole may be used again.
                same = {key for key in keys if self._sizes.get(key) == sizes[key]}
                self._tasks = {key: tasks for key, tasks in self._tasks.items() if key in same}
                self._damaged = {key: error for key, error in self._damaged.items() if key in same}
                if self._open is not None and self._open.key not in same:
                    self._open = None
                self._sizes = sizes
                new = [key for key in keys if key not in self._tasks and key not in self._damaged]
                # One that is gone again was replaced by another, which is to be found in a new listing.
                complete = all(self._load(key) is not None or key in self._damaged for key in new)

    def stages(self) -> set[str]:
        """Return the stages of which there are receipts."""
        with self._lock:
            return {stage for tasks in self._tasks.values() for stage in tasks}

    def tasks(self, stage: str) -> list[frozenset[str]]:
        """Return the tasks of a stage that are in each segment."""
        with self._lock:
            return [tasks[stage] for tasks in self._tasks.values() if stage in tasks]

    def knows(self, stage: str, task: str) -> bool:
        """Return whether a task is in a segment."""
        return any(task in tasks for tasks in self.tasks(stage))

    def damaged(self) -> dict[str, str]:
        """Return, by key, what is wrong with segments that cannot be relied on."""
        with self._lock:
            return {key: error.message for key, error in self._damaged.items()}

    def require_whole(self) -> None:
        """Refuse to go on when a segment is damaged.

        Raises:
            StorageError: Names it.
        """
        for message in self.damaged().values():
            raise StorageError(message)

    def read(self, stage: str, task: str | None = None) -> Iterator[Segment]:
        """Yield the segments with receipts of a stage, or with that of a task; what replaces one meanwhile, too."""
        done: set[str] = set()
        while todo := [key for key in self._holding(stage, task) if key not in done]:
            done.update(todo)
            for key in todo:
                segment = self._load(key)
                if segment is None:
                    self.refresh()
                else:
                    yield segment

    def holding(self, names: frozenset[Name]) -> Iterator[str]:
        """Yield the keys of the segments with any of these receipts."""
        with self._lock:
            found = list(self._tasks.items())
        for key, tasks in found:
            if any(task in tasks.get(stage, ()) for stage, task in names):
                yield key

    def lines(self, key: str, *, without: frozenset[Name]) -> dict[Name, bytes]:
        """Return the encoded receipts of a segment, some left out; none if it is gone.

        Raises:
            StorageError: It is damaged.
        """
        with self._lock:
            segment = self._load(key)
            if segment is None and key in self._damaged:
                raise self._damaged[key]
        return {} if segment is None else segment.without(without)

    def write(self, lines: Mapping[Name, bytes], epoch: int) -> None:
        """Write a segment with these encoded receipts and read it back; nothing for none.

        Raises:
            StorageError: The store does not hold what was written.
        """
        if not lines:
            return
        with self._lock:
            number = max(
                (layout.segment_number(key) for key in self._sizes if layout.segment_epoch(key) == epoch), default=0
            )
            created = False
            while not created:
                number += 1
                key = layout.segment(epoch, number)
                data = encode_segment(key, lines)
                created = self._store.put_new(key, data)
            if self._store.get(key) != data:
                raise damaged_segment(key, self._store.url, "it does not hold what was just written.")
            self._open = parse_segment(data, key, self._store.url)
            self._tasks[key], self._sizes[key] = self._open.tasks, len(data)

    def replace(self, key: str, lines: Mapping[Name, bytes]) -> None:
        """Write a segment with these receipts, then delete the one that they come from."""
        with self._lock:
            self.write(lines, layout.segment_epoch(key))
            self._store.delete(key)
            self._tasks.pop(key, None)
            self._damaged.pop(key, None)

    def _holding(self, stage: str, task: str | None) -> list[str]:
        with self._lock:
            found = list(self._tasks.items())
        return [key for key, tasks in found if stage in tasks and (task is None or task in tasks[stage])]

    def _load(self, key: str) -> Segment | None:
        """Read a segment; None if it is gone or damaged."""
        with self._lock:
            if self._open is not None and self._open.key == key:
                return self._open
            data = self._store.get(key)
            self._tasks.pop(key, None)
            if data is None:
                return None
            try:
                self._open = parse_segment(data, key, self._store.url)
            except StorageError as error:
                self._damaged[key] = error
                return None
            self._tasks[key] = self._open.tasks
            return self._open
