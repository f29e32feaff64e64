"""The runs below a root, opened when they are asked for and looked at again when they were replaced."""

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from threading import Lock
from typing import Final, final

from ntkpipe.configs.errors import NotFoundError, NtkPipeError, StorageError
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.storage import layout, pinned
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.files import leads_out
from ntkpipe.storage.stores.keys import check_name
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.read_only import ReadOnlyStore
from ntkpipe.storage.stores.registry import open_store

MAX_NAME: Final = 255

LOOKS_AT_ONCE: Final = 16
"""Round trips to a store, where runs are listed."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A run that is being asked."""

    name: str
    run: Run
    reader: StoredRunReader
    """Of the run."""
    store: AbstractStore
    modified: float | None
    """When its manifest was written, by the store's clock."""
    manifest: bytes
    """As it is stored."""
    digest: str
    """Of the manifest: runs that are not the same have others."""


@final
class Runs:
    """The runs right below a folder or URL, or the one that is there. Thread safe.

    Args:
        root: Folder or URL.
        open_reader: Makes the reader of a run from its store.
        max_open: How many stay open.
        look_seconds: How long a run may be taken for what it was; None chooses by the kind of store.

    Attributes:
        own_name: The name of the root where it is a run itself, else None.

    Raises:
        ConfigError: The root is no place that runs can be in.
        StorageError: The store fails.
    """

    def __init__(
        self,
        root: str,
        open_reader: Callable[[AbstractStore], StoredRunReader],
        max_open: int,
        look_seconds: float | None = None,
    ) -> None:
        self._url = root.rstrip("/") or root
        self._store = open_store(root)
        # Decided once: a folder of runs does not become a run while it is served.
        self.own_name = self._last_part if self._store.exists(layout.MANIFEST) else None
        self._open_reader = open_reader
        self._max_open = max_open
        self._look_seconds = pinned.look_seconds(self._store) if look_seconds is None else look_seconds
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._looked: dict[str, float] = {}
        self._lock = Lock()

    @property
    def num_open(self) -> int:
        """How many runs are in memory."""
        return len(self._opened)

    def page(self, after: str, limit: int) -> tuple[list[str], bool]:
        """Return the names of runs that follow a name, and whether there are more; one listing and looks into folders."""
        if self.own_name is not None:
            names = [self.own_name] if self.own_name > after else []
            return names[:limit], len(names) > limit
        folders = [name for name in self._store.folders() if name > after and _is_name(name)]
        found: list[str] = []
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            for start in range(0, len(folders), limit):
                part = folders[start : start + limit]
                found += [name for name, is_run in zip(part, pool.map(self._has_manifest, part), strict=True) if is_run]
                if len(found) > limit:
                    break
        return found[:limit], len(found) > limit

    def open(self, name: str) -> Opened:
        """Return a run, as it is now.

        Raises:
            NotFoundError: The root's listing has no such name, or it is no run.
            StorageError: What it is cannot be read.
        """
        with self._lock:
            found = self._opened.get(name)
            if found is not None and time.monotonic() - self._looked[name] < self._look_seconds:
                self._opened.move_to_end(name)
                return found
        if found is None:
            self._require_listed(name)
            return self._keep(name, self._opened_now(name))
        modified = None if self._leads_out(name) else found.store.modified(layout.MANIFEST)
        if modified is None:
            self._forget(name)
            raise _missing(name)
        if modified == found.modified:
            return self._keep(name, found)
        new = self._opened_now(name)
        # A manifest that was written again with the same content is the same run: what is known of it stays true.
        return self._keep(name, replace(found, modified=modified) if new.manifest == found.manifest else new)

    def told(self, text: str) -> str:
        """Return a message without the place of the root: runs go by their names."""
        if self.own_name is not None:
            places = dict.fromkeys((self._url, self._store.url), self.own_name)
        else:
            places = {f"{url.rstrip('/')}/": "" for url in (self._url, self._store.url)}
            places |= {self._store.url: "the root", self._url: "the root"}
        for place in sorted(places, key=len, reverse=True):
            if len(place) > 1:
                text = text.replace(place, places[place])
        return text

    @property
    def _last_part(self) -> str:
        return self._store.url.rstrip("/").rpartition("/")[2]

    def _store_of(self, name: str) -> AbstractStore:
        store = self._store if name == self.own_name else open_store(f"{self._url}/{name}")
        # Looking at a run must leave it alone, and reading the store's clock would not.
        return ReadOnlyStore(store)

    def _has_manifest(self, name: str) -> bool:
        try:
            return not self._leads_out(name) and self._store_of(name).exists(layout.MANIFEST)
        except NtkPipeError:
            return True  # it is listed, and told to be unreadable

    def _leads_out(self, name: str) -> bool:
        """Return whether a run is behind a symbolic link out of the root; its own store would begin behind that."""
        store = self._store
        return isinstance(store, LocalRunStore) and name != self.own_name and leads_out(store.root, name)

    def _require_listed(self, name: str) -> None:
        listed = [self.own_name] if self.own_name is not None else self._store.folders() if _is_name(name) else []
        if name not in listed or self._leads_out(name):
            raise _missing(name)

    def _opened_now(self, name: str) -> Opened:
        store = self._store_of(name)
        # The time first: a run that is replaced in between is then opened once more.
        modified, data = store.modified(layout.MANIFEST), store.get(layout.MANIFEST)
        if modified is None or data is None:
            self._forget(name)
            raise _missing(name)
        reader = self._open_reader(store)
        return Opened(name, Run(reader), reader, store, modified, data, sha256(data).hexdigest())

    def _keep(self, name: str, opened: Opened) -> Opened:
        with self._lock:
            self._opened[name] = opened
            self._looked[name] = time.monotonic()
            self._opened.move_to_end(name)
            while len(self._opened) > self._max_open:
                gone, _ = self._opened.popitem(last=False)
                self._looked.pop(gone, None)
        return opened

    def _forget(self, name: str) -> None:
        with self._lock:
            self._opened.pop(name, None)
            self._looked.pop(name, None)


def _is_name(name: str) -> bool:
    if len(name) > MAX_NAME:
        return False
    try:
        check_name(name)
    except StorageError:
        return False
    return True


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"there is no run {name[:MAX_NAME]!r} here. GET /v1/runs lists those that there are.")
