"""Opening the place of a run that is about to be written."""

import os
import uuid
from contextlib import suppress

from ntkpipe.configs.errors import StorageError
from ntkpipe.configs.store import StoreConfig
from ntkpipe.storage import layout
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.stores.single_writer import SingleWriterStore


def open_for_writing(url: str | os.PathLike[str], config: StoreConfig) -> AbstractStore:
    """Return a store that keeps what the configuration asks for, and has just shown that it keeps drivers apart.

    Raises:
        ConfigError: The URL is not acceptable.
        StorageError: The store cannot be written, or lets two drivers create the same object and the configuration
            does not allow that.
    """
    store = open_store(url, fsync=config.fsync)
    lack = _lack(store)
    if lack is None:
        return store
    if config.single_writer:
        return SingleWriterStore(store)
    raise StorageError(
        f"{store.url}: the store {lack}, so that two drivers could both take this run, and overwrite each other's "
        "receipts. Choose another place with --out. If nobody else will ever write to this run while you do, allow it "
        "with --single-writer (store.single_writer=true)."
    )


def _lack(store: AbstractStore) -> str | None:
    """Create an object twice; return what the store does wrong, None when it does nothing wrong."""
    name = uuid.uuid4().hex
    key, first, second = f"{layout.LOCK}/probe-{name}", f"first {name}".encode(), f"second {name}".encode()
    try:
        created, created_again, found = store.put_new(key, first), store.put_new(key, second), store.get(key)
    except StorageError as error:
        # Whether it cannot be written at all, or only not this way; the first is for its own error to say.
        store.put(key, first)
        return f'cannot create an object "only if it does not exist" ({error.message})'
    finally:
        with suppress(StorageError):
            store.delete(key)
    if not created:
        return "says that an object exists which nobody has written"
    if created_again or found != first:
        return 'ignores the condition "only if it does not exist": an object could be created twice'
    return None
