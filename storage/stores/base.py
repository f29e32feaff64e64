"""The seam: what a run needs of a place to live in."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.storage import layout

NUM_THREADS = 16
"""Requests under way at a time where many objects are read or deleted: round trips, not bytes, take the time there."""

MANY = 512
"""Objects that are handed to the threads at a time, so that what has been read does not pile up."""


class AbstractStore(ABC):
    """One run's place: keys are relative paths with ``/``, values are small objects.

    Keys follow the rules of :func:`ntkpipe.storage.stores.keys.checked_key`.

    Attributes:
        url: Where the run lives.
        shared: Whether other processes see the same content.
        reads_at_once: Large objects that are best read side by side, when several are needed.

    Raises:
        StorageError: From every method, when the store fails, or a key could mean something outside the run.
    """

    url: str
    shared: bool
    reads_at_once: int = NUM_THREADS

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object unless it exists; return whether this call, or a repetition of it, has created it.

        Of several writers that race with different contents exactly one is told True, whatever happens to requests and
        answers on the way: a client that repeats a request whose answer was lost is told "exists" by the service, so
        that content decides. Contents must therefore be unique, as claims and receipts are: where clients repeat
        requests, a second writer of equal bytes may be told True as well.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object; readers see the old or the new content, never a part."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return an object's content, None when there is none."""

    @abstractmethod
    def get_writable(self, key: str) -> bytearray | None:
        """Return an object's content in memory that is the caller's own, so that large ones need not be copied."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether there is an object now, whatever was known before."""

    @abstractmethod
    def modified(self, key: str) -> float | None:
        """Return when an object was last written, in seconds of the store's own clock; None when there is none."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of all whole objects below ``prefix``, by key, sorted; one listing."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the sorted names of the folders right below the store's root, without looking into them."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object if it exists."""

    @abstractmethod
    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove objects, several at a time; those that do not exist are passed over."""

    @abstractmethod
    def copy(self, source: "AbstractStore", source_key: str, key: str) -> None:
        """Create or replace an object with the content of one in another store, without moving bytes if that is possible.

        Raises:
            NotFoundError: The other store has no such object.
        """

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return how many bytes still fit, None when the store has no known limit."""

    @abstractmethod
    def debris(self) -> dict[str, int]:
        """Return the bytes of what writers that were killed have left, by a key that :meth:`delete` takes."""

    def read(self, key: str) -> bytes:
        """Return an object's content.

        Raises:
            NotFoundError: There is no such object.
        """
        data = self.get(key)
        if data is None:
            raise NotFoundError(f"{self.url} has no {key}.")
        return data

    def read_into(self, key: str, memory: bytearray) -> int | None:
        """Read an object's content into memory as far as it goes; return the size of the object, None when there is none.

        Memory that is used again and again stays in the processor's caches, where new memory has to be cleared first.
        """
        data = self.get(key)
        if data is None:
            return None
        size = min(len(data), len(memory))
        memory[:size] = data[:size]
        return len(data)

    def names(self, prefix: str) -> list[str]:
        """Return the sorted keys of all whole objects below ``prefix``; one listing."""
        return list(self.sizes(prefix))

    def get_many(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """Yield keys and contents in order, reading several objects at a time; memory is O(a few hundred objects)."""
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for part in parts(keys, MANY):
                yield from zip(part, pool.map(self.get, part), strict=True)

    def now(self) -> float:
        """Return the time by the clock that dates the store's objects, found by writing one: no other clock compares."""
        key = f"{layout.LOCK}/clock-{uuid.uuid4().hex}"
        self.put(key, b"")
        found = self.modified(key)
        self.delete(key)
        if found is None:
            raise NotFoundError(f"{self.url} does not keep what is written to it: {key} is gone.")
        return found


def delete_each(store: AbstractStore, keys: Iterable[str]) -> None:
    """Remove objects of a store that has no request for many, with several requests under way."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for part in parts(keys, MANY):
            list(pool.map(store.delete, part))


def parts(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield keys in lists of at most ``size``."""
    rest = iter(keys)
    while part := list(islice(rest, size)):
        yield part
