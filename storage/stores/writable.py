"""Opening the place of a run that is about to be written."""

import os

from ntkpipe.configs.store import StoreConfig
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store


def open_for_writing(url: str | os.PathLike[str], config: StoreConfig) -> AbstractStore:
    """Return a store that keeps what the configuration asks for.

    Raises:
        ConfigError: The URL is not acceptable.
        StorageError: The store cannot be written.
    """
    return open_store(url, fsync=config.fsync)
