"""Runs in an object store, or in memory, behind fsspec."""

from contextlib import suppress
from datetime import datetime
from typing import Any, final

import fsspec
import zarr.abc.store
from zarr.storage import FsspecStore

from ntkpipe.configs.errors import ConfigError, NotFoundError
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.errors import storage_errors


@final
class FsspecRunStore(AbstractStore):
    """An object store, or memory, behind fsspec."""

    def __init__(self, url: str) -> None:
        protocol = url.partition("://")[0]
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            extra = "gcs" if protocol in ("gs", "gcs") else protocol
            raise ConfigError(f"{url} needs a package: {error}. Try: pip install 'ntkpipe[{extra}]'") from None
        self.url = url
        self.shared = protocol != "memory"

    def put_new(self, key: str, data: bytes) -> bool:
        """Ask the object store to refuse the write when the object exists."""
        with storage_errors(self.url):
            try:
                self._fs.pipe_file(self._path(key), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # s3fs reports a failed precondition (HTTP 412) as a plain OSError.
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return False
                raise
        return True

    def put(self, key: str, data: bytes) -> None:
        """Replace an object; object stores do this atomically."""
        with storage_errors(self.url):
            self._fs.pipe_file(self._path(key), data)

    def get(self, key: str) -> bytes | None:
        """Read an object."""
        with storage_errors(self.url):
            try:
                return bytes(self._fs.cat_file(self._path(key)))
            except FileNotFoundError:
                return None

    def exists(self, key: str) -> bool:
        """Ask for an object, past what earlier listings have told."""
        return self._info(key) is not None

    def modified(self, key: str) -> float | None:
        """Ask when the service has written an object."""
        if self._info(key) is None:
            return None
        with storage_errors(self.url):
            found: datetime = self._fs.modified(self._path(key))
            return found.timestamp()

    def sizes(self, prefix: str) -> dict[str, int]:
        """List objects in one recursive call."""
        with storage_errors(self.url):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(prefix), detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(self._root).lstrip("/"): found[path]["size"] for path in sorted(found)}

    def folders(self) -> list[str]:
        """List common prefixes."""
        with storage_errors(self.url):
            self._fs.invalidate_cache()
            try:
                items = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        return sorted(item["name"].rstrip("/").rpartition("/")[2] for item in items if item["type"] == "directory")

    def delete(self, key: str) -> None:
        """Remove an object."""
        with storage_errors(self.url), suppress(FileNotFoundError):
            self._fs.rm_file(self._path(key))

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Let the service copy an object of its own."""
        if not isinstance(source, FsspecRunStore) or source._fs is not self._fs:
            self.put(key, source.read(source_key))
            return
        with storage_errors(self.url):
            try:
                self._fs.cp_file(source._path(source_key), self._path(key))
            except FileNotFoundError:
                raise NotFoundError(f"{source.url} has no {source_key}.") from None

    def zarr_store(self, key: str, *, read_only: bool) -> zarr.abc.store.Store:
        """Return an fsspec-backed zarr store with its own asynchronous file system."""
        return FsspecStore.from_url(f"{self.url.rstrip('/')}/{key}", read_only=read_only)

    def free_bytes(self) -> int | None:
        """Object stores have no known limit."""
        return None

    def debris(self) -> dict[str, int]:
        """Object stores show whole objects only."""
        return {}

    def _info(self, key: str) -> dict[str, Any] | None:
        with storage_errors(self.url):
            self._fs.invalidate_cache(self._path(key))
            try:
                found: dict[str, Any] = self._fs.info(self._path(key))
            except FileNotFoundError:
                return None
        return found if found["type"] == "file" else None

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"
