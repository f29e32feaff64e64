"""Stores around another store: they read as it does, and have rules of their own for writing."""

from ntkpipe.storage.stores.base import AbstractStore


class AbstractWrapper(AbstractStore):
    """Another store, read as it is. What writes is left to the subclass.

    Args:
        store: The other one.
    """

    def __init__(self, store: AbstractStore) -> None:
        self._store = store
        self.url = store.url
        self.shared = store.shared
        self.reads_at_once = store.reads_at_once

    def get(self, key: str) -> bytes | None:
        """Read."""
        return self._store.get(key)

    def get_writable(self, key: str) -> bytearray | None:
        """Read."""
        return self._store.get_writable(key)

    def read_into(self, key: str, memory: bytearray) -> int | None:
        """Read."""
        return self._store.read_into(key, memory)

    def exists(self, key: str) -> bool:
        """Ask."""
        return self._store.exists(key)

    def modified(self, key: str) -> float | None:
        """Ask."""
        return self._store.modified(key)

    def sizes(self, prefix: str) -> dict[str, int]:
        """List."""
        return self._store.sizes(prefix)

    def folders(self) -> list[str]:
        """List."""
        return self._store.folders()

    def free_bytes(self) -> int | None:
        """Ask."""
        return self._store.free_bytes()

    def debris(self) -> dict[str, int]:
        """List."""
        return self._store.debris()
