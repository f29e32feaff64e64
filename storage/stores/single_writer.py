"""A store that cannot create an object only if it does not exist, for a user who promises to be its only writer."""

from collections.abc import Iterable
from typing import final

from ntkpipe.storage.stores.base import AbstractStore


@final
class SingleWriterStore(AbstractStore):
    """Another store, whose ``put_new`` looks before it writes; two drivers that look at once are not kept apart."""

    def __init__(self, store: AbstractStore) -> None:
        self._store = store
        self.url = store.url
        self.shared = store.shared

    def put_new(self, key: str, data: bytes) -> bool:
        """Look, then write."""
        if self._store.exists(key):
            return False
        self._store.put(key, data)
        return True

    def put(self, key: str, data: bytes) -> None:
        """Pass on."""
        self._store.put(key, data)

    def get(self, key: str) -> bytes | None:
        """Pass on."""
        return self._store.get(key)

    def get_writable(self, key: str) -> bytearray | None:
        """Pass on."""
        return self._store.get_writable(key)

    def exists(self, key: str) -> bool:
        """Pass on."""
        return self._store.exists(key)

    def modified(self, key: str) -> float | None:
        """Pass on."""
        return self._store.modified(key)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Pass on."""
        return self._store.sizes(prefix)

    def folders(self) -> list[str]:
        """Pass on."""
        return self._store.folders()

    def delete(self, key: str) -> None:
        """Pass on."""
        self._store.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Pass on."""
        self._store.delete_many(keys)

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Pass on."""
        self._store.copy(source, source_key, key)

    def free_bytes(self) -> int | None:
        """Pass on."""
        return self._store.free_bytes()

    def debris(self) -> dict[str, int]:
        """Pass on."""
        return self._store.debris()
