"""Runs in an object store, or in memory, behind fsspec."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any, TypeVar, final

import fsspec
from fsspec.asyn import AsyncFileSystem, get_loop

from ntkpipe.configs.errors import ConfigError, StorageError
from ntkpipe.storage.stores.base import AbstractStore, delete_each, parts
from ntkpipe.storage.stores.errors import missing_source, storage_errors
from ntkpipe.storage.stores.keys import checked_key, checked_prefix
from ntkpipe.storage.stores.persistence import persist, settled

OPTIONS: dict[str, dict[str, Any]] = {
    # Listings are never believed twice. A whole object is read by one request: several could see two versions of it,
    # and the first of them would only ask for its size.
    "s3": {"use_listings_cache": False, "max_concurrency": 1},
    "gs": {"use_listings_cache": False},
    "gcs": {"use_listings_cache": False},
}
"""Of the clients, by scheme."""

DATES = ("LastModified", "mtime", "created")
"""Where clients keep when an object was written; objects are replaced, so that it was created then too."""

REFUSALS = ("PreconditionFailed", "pre-conditions", "pre-condition", "ConditionNotMet")
"""In messages of a client that reports a failed condition (HTTP 412) as a plain OSError."""

MANY_DELETED = 1000
"""Keys that S3 takes in one request."""

Result = TypeVar("Result")


@final
class FsspecRunStore(AbstractStore):
    """An object store, or memory, behind fsspec.

    Args:
        scheme: ``memory``, ``s3``, ``gs`` or ``gcs``.
        path: Bucket and folder.
    """

    def __init__(self, scheme: str, path: str) -> None:
        self.url = f"{scheme}://{path}"
        self.shared = scheme != "memory"
        self._scheme = scheme
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **OPTIONS.get(scheme, {}))
        except ImportError as error:
            extra = "gcs" if scheme in ("gs", "gcs") else scheme
            raise ConfigError(f"{self.url} needs a package: {error}. Try: pip install 'ntkpipe[{extra}]'") from None
        if isinstance(self._fs, AsyncFileSystem):
            get_loop().set_exception_handler(_forget_lost_connections)

    def put_new(self, key: str, data: bytes) -> bool:
        """Ask the object store to refuse the write when the object exists; then see whose bytes it holds."""
        path = self._path(key)

        def create() -> bool:
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return settled(self._read(path), data)
            except OSError as error:
                if any(words in str(error) for words in REFUSALS):
                    return settled(self._read(path), data)
                raise
            return True

        return self._do(create)

    def put(self, key: str, data: bytes) -> None:
        """Replace an object; object stores do this atomically."""
        self._do(lambda: self._fs.pipe_file(self._path(key), data))

    def get(self, key: str) -> bytes | None:
        """Read an object."""
        return self._do(lambda: self._read(self._path(key)))

    def get_writable(self, key: str) -> bytearray | None:
        """Read an object, and copy it."""
        data = self.get(key)
        return None if data is None else bytearray(data)

    def exists(self, key: str) -> bool:
        """Ask for an object."""
        return self._info(key) is not None

    def modified(self, key: str) -> float | None:
        """Ask when the service has written an object."""
        info = self._info(key)
        if info is None:
            return None
        found = next((info[name] for name in DATES if isinstance(info.get(name), datetime)), None)
        if found is None:
            raise StorageError(f"{self.url}: the store does not say when {key} was written.")
        return float(found.timestamp())

    def sizes(self, prefix: str) -> dict[str, int]:
        """List objects in one recursive call."""
        path = self._path(prefix) if checked_prefix(prefix) else self._root

        def find() -> dict[str, Any]:
            try:
                found: dict[str, Any] = self._fs.find(path, detail=True)
            except FileNotFoundError:
                return {}
            return found

        start = f"{self._root.rstrip('/')}/"
        # Some services show emptied folders as objects of no bytes; their names end with a slash or are the prefix.
        return {
            name.removeprefix(start): int(info["size"])
            for name, info in sorted(self._do(find).items())
            if name.startswith(start) and not name.endswith("/") and info["type"] == "file"
        }

    def folders(self) -> list[str]:
        """List common prefixes."""

        def ls() -> list[dict[str, Any]]:
            try:
                found: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
            return found

        items = self._do(ls)
        return sorted(item["name"].rstrip("/").rpartition("/")[2] for item in items if item["type"] == "directory")

    def delete(self, key: str) -> None:
        """Remove an object."""

        def remove() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(key))

        self._do(remove)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove a thousand objects per request from S3, and one by one from other services.

        The client's own removal of many does not tell which ones the service has refused to remove.
        """
        if self._scheme != "s3":
            delete_each(self, keys)
            return
        for part in parts(keys, MANY_DELETED):
            bucket = self._root.partition("/")[0]
            objects = [{"Key": self._path(key).partition("/")[2]} for key in part]
            found = self._do(
                lambda bucket=bucket, objects=objects: self._fs.call_s3(  # type: ignore[misc]
                    "delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True}
                )
            )
            for error in found.get("Errors", []):
                raise StorageError(f"{self.url}: {error.get('Key')} could not be removed: {error.get('Message')}")

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Let the service copy an object of its own."""
        if not isinstance(source, FsspecRunStore) or source._service != self._service:
            self.put(key, source.read(source_key))
            return
        with missing_source(source.url, source_key):
            self._do(lambda: self._fs.cp_file(source._path(source_key), self._path(key)))

    def free_bytes(self) -> int | None:
        """Object stores have no known limit."""
        return None

    def debris(self) -> dict[str, int]:
        """Object stores show whole objects only, and what is written here is written by one request."""
        return {}

    @property
    def _service(self) -> tuple[type, dict[str, Any]]:
        """What clients of the same service have in common, whichever thread has made them."""
        return type(self._fs), self._fs.storage_options

    def _do(self, operation: Callable[[], Result]) -> Result:
        with storage_errors(self.url):
            return persist(operation)

    def _read(self, path: str) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            return None

    def _info(self, key: str) -> dict[str, Any] | None:
        path = self._path(key)

        def info() -> dict[str, Any] | None:
            try:
                if self._scheme == "s3":
                    # The client's own way lists as well, to find out whether a missing object is a folder.
                    bucket, _, name = path.partition("/")
                    head: dict[str, Any] = self._fs.call_s3("head_object", Bucket=bucket, Key=name)
                    return head
                found: dict[str, Any] = self._fs.info(path)
            except FileNotFoundError:
                return None
            return found if found["type"] == "file" else None

        return self._do(info)

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{checked_key(key)}"


def _forget_lost_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Keep asyncio from printing how a helper of a request has ended: whoever made the request has an error that tells it."""
    if not isinstance(context.get("exception"), ConnectionError):
        loop.default_exception_handler(context)
