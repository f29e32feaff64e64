"""A store that is only read, whatever whoever holds it may do."""

import time
from collections.abc import Iterable
from typing import NoReturn

from ntkpipe.configs.errors import StorageError
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.wrapper import AbstractWrapper


class ReadOnlyStore(AbstractWrapper):
    """Another store, to which nothing is written."""

    def now(self) -> float:
        """Return the time by this machine's clock: that of the store can be read by writing only."""
        return time.time()

    def put_new(self, key: str, data: bytes) -> bool:
        """Refuse."""
        self._refuse()

    def put(self, key: str, data: bytes) -> None:
        """Refuse."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Refuse."""
        self._refuse()

    def delete_many(self, keys: Iterable[str]) -> None:
        """Refuse."""
        self._refuse()

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StorageError(f"{self.url} is only read here.")
