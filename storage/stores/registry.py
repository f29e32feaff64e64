"""From a path or URL to its store."""

import os
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.fsspec_store import FsspecRunStore
from ntkpipe.storage.stores.local import LocalRunStore

EXCLUSIVE_PROTOCOLS = ("memory", "s3", "gs", "gcs")
"""Object stores whose fsspec ``mode="create"`` was found to let exactly one of several writers win."""


def open_store(url: str | os.PathLike[str], *, fsync: bool = False) -> AbstractStore:
    """Return the store of a path or URL; nothing is created or checked yet.

    Args:
        url: Of a run.
        fsync: Whether what is written to a local disk must survive a power failure.

    Raises:
        ConfigError: The URL's scheme is not one that a run can be written to safely, or needs a missing package.
    """
    text = os.fspath(url)
    if not text:
        raise ConfigError("the path or URL of the run is empty.")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalRunStore(Path(text))
    if scheme == "file":
        return LocalRunStore(Path(LocalFileSystem._strip_protocol(text)))
    if scheme not in EXCLUSIVE_PROTOCOLS:
        raise ConfigError(f"{text}: {unknown_name('URL scheme', scheme, ['file', *EXCLUSIVE_PROTOCOLS])}")
    if not rest.strip("/"):
        raise ConfigError(f"{text} names no folder or bucket; expected something like {scheme}://bucket/runs/my-run")
    return FsspecRunStore(text)
