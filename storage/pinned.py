"""A run as whoever has opened it may read it: what is put in its place later is another run."""

import time
from typing import Final, final

from ntkpipe.configs.errors import RunMismatchError
from ntkpipe.storage import layout
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.read_only import ReadOnlyStore

REMOTE_LOOK_SECONDS: Final = 2.0
"""A look is a request to an object store."""


def look_seconds(store: AbstractStore) -> float:
    """Return for how long a run may be taken for what it was at the last look; on a disk a look takes 10 microseconds."""
    is_near = "://" not in store.url or store.url.startswith(("file://", "memory://"))
    return 0.0 if is_near else REMOTE_LOOK_SECONDS


@final
class PinnedStore(ReadOnlyStore):
    """The place of a run, read as long as it holds that run. Thread safe.

    After whatever is read there is a look at the manifest, in an object store one every few seconds.

    Args:
        store: The place.

    Attributes:
        manifest: Of the run.

    Raises:
        NotFoundError: There is no run.
    """

    def __init__(self, store: AbstractStore) -> None:
        super().__init__(store)
        self._look_seconds = look_seconds(store)
        self._looked_at = time.monotonic()
        # The time first: of a run that is replaced in between the manifest is then read once more.
        self._modified = store.modified(layout.MANIFEST)
        self.manifest = Manifest.read(store)

    def get(self, key: str) -> bytes | None:
        """Read.

        Raises:
            NotFoundError: The run has gone.
            RunMismatchError: There is another one in its place.
        """
        found = super().get(key)
        self.check()
        return found

    def get_writable(self, key: str) -> bytearray | None:
        """Read; raises like :meth:`get`."""
        found = super().get_writable(key)
        self.check()
        return found

    def read_into(self, key: str, memory: bytearray) -> int | None:
        """Read; raises like :meth:`get`."""
        found = super().read_into(key, memory)
        self.check()
        return found

    def sizes(self, prefix: str) -> dict[str, int]:
        """List; raises like :meth:`get`."""
        found = super().sizes(prefix)
        self.check()
        return found

    def check(self) -> None:
        """Look whether the run is still there; raises like :meth:`get`."""
        now = time.monotonic()
        if now - self._looked_at < self._look_seconds:
            return
        modified = self._store.modified(layout.MANIFEST)
        if modified != self._modified:
            require_run(Manifest.read(self._store), self.manifest.run_id, self.url)
            self._modified = modified
        self._looked_at = now


def require_run(found: Manifest, run_id: str, url: str) -> None:
    """Refuse a run that is not the one that was opened.

    Raises:
        RunMismatchError: It is another one.
    """
    if found.run_id != run_id:
        raise RunMismatchError(
            f"{url} holds another run than the one that was opened: found {found.run_id}, expected {run_id}. Open it again."
        )
