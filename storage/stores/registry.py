"""From a path or URL to its store."""

import os
from pathlib import Path

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.fsspec_store import FsspecRunStore
from ntkpipe.storage.stores.keys import SCHEMES, split_url
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.obstore_store import ObstoreRunStore


def open_store(url: str | os.PathLike[str], *, fsync: bool = False) -> AbstractStore:
    """Return the store of a path or URL; nothing is created or checked yet.

    Args:
        url: Of a run, or of a folder of runs: a path, or ``file``, ``memory``, ``s3``, ``gs`` or ``gcs`` and a bucket;
            ``s3+obstore`` and ``gs+obstore`` are the same services through a faster client.
        fsync: Whether what is written to a local disk must survive a power failure.

    Raises:
        ConfigError: The URL's scheme is not one that a run can be written to safely, or needs a missing package, or the
            URL carries credentials.
    """
    text = os.fspath(url)
    if not text:
        raise ConfigError("the path or URL of the run is empty.")
    scheme, path = split_url(text)
    if scheme not in ("", *SCHEMES):
        raise ConfigError(f"{text}: {unknown_name('URL scheme', scheme, SCHEMES)}")
    if scheme in ("", "file"):
        return LocalRunStore(Path(path), fsync=fsync)
    if not path:
        raise ConfigError(f"{text} names no folder or bucket; expected something like {scheme}://bucket/runs/my-run")
    return ObstoreRunStore(scheme, path) if scheme.endswith("+obstore") else FsspecRunStore(scheme, path)
