"""A store that cannot create an object only if it does not exist, for a user who promises to be its only writer."""

from collections.abc import Iterable
from typing import final

from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.wrapper import AbstractWrapper


@final
class SingleWriterStore(AbstractWrapper):
    """Another store, whose ``put_new`` looks before it writes; two drivers that look at once are not kept apart."""

    def put_new(self, key: str, data: bytes) -> bool:
        """Look, then write."""
        if self._store.exists(key):
            return False
        self._store.put(key, data)
        return True

    def put(self, key: str, data: bytes) -> None:
        """Replace."""
        self._store.put(key, data)

    def delete(self, key: str) -> None:
        """Remove."""
        self._store.delete(key)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove."""
        self._store.delete_many(keys)

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Copy."""
        self._store.copy(source, source_key, key)
