"""Runs in an object store behind obstore: fewer and faster requests than through fsspec."""

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar, final
from urllib.parse import urlsplit

from ntkpipe.configs.errors import ConfigError
from ntkpipe.storage.stores.base import AbstractStore, parts
from ntkpipe.storage.stores.errors import missing_source, storage_errors
from ntkpipe.storage.stores.keys import checked_key, checked_prefix
from ntkpipe.storage.stores.persistence import persist, settled

LISTED = 1000
"""Objects that are handed over at a time; a page of S3."""

LOOPBACK = ("127.0.0.1", "::1", "localhost")
ATTEMPTS = "AWS_MAX_ATTEMPTS"
"""The other client reads it, so this one does too."""

ALLOW_HTTP = "AWS_ALLOW_HTTP"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

Result = TypeVar("Result")


@final
class ObstoreRunStore(AbstractStore):
    """An object store behind obstore.

    The client reads the same environment as others: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS
    and so on; it does not read AWS's files of profiles. Plain HTTP is allowed on the loopback interface, and elsewhere
    only where AWS_ALLOW_HTTP says so. AWS_MAX_ATTEMPTS says how often a request is tried.

    Args:
        scheme: ``s3+obstore`` or ``gs+obstore``.
        path: Bucket and folder.
    """

    shared = True

    def __init__(self, scheme: str, path: str) -> None:
        self.url = f"{scheme}://{path}"
        self._service = scheme.partition("+")[0]
        self._bucket, _, self._root = path.partition("/")
        self._store = self._client()

    def put_new(self, key: str, data: bytes) -> bool:
        """Ask the object store to refuse the write when the object exists; then see whose bytes it holds."""
        from obstore.exceptions import AlreadyExistsError

        path = self._path(key)

        def create() -> bool:
            try:
                self._store.put(path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                found = self._read(path)
                return settled(None if found is None else bytes(found), data)
            return True

        return self._do(create)

    def put(self, key: str, data: bytes) -> None:
        """Replace an object by one request."""
        self._do(lambda: self._store.put(self._path(key), data, use_multipart=False))

    def get(self, key: str) -> bytes | None:
        """Read an object."""
        found = self._do(lambda: self._read(self._path(key)))
        return None if found is None else bytes(found)

    def get_writable(self, key: str) -> bytearray | None:
        """Read an object; its content is copied once."""
        found = self._do(lambda: self._read(self._path(key)))
        return None if found is None else bytearray(found)

    def exists(self, key: str) -> bool:
        """Ask for an object."""
        return self._head(key) is not None

    def modified(self, key: str) -> float | None:
        """Ask when the service has written an object."""
        found = self._head(key)
        if found is None:
            return None
        written: datetime = found["last_modified"]
        return written.timestamp()

    def sizes(self, prefix: str) -> dict[str, int]:
        """List objects page by page."""
        path = self._path(prefix) if checked_prefix(prefix) else self._root
        start = len(self._root) + 1 if self._root else 0

        def find() -> dict[str, int]:
            pages = self._store.list(path or None, chunk_size=LISTED)
            return {found["path"][start:]: found["size"] for page in pages for found in page}

        return dict(sorted(self._do(find).items()))

    def folders(self) -> list[str]:
        """List common prefixes."""
        found = self._do(lambda: self._store.list_with_delimiter(self._root or None))
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.delete_many([key])

    def delete_many(self, keys: Iterable[str]) -> None:
        """Remove a thousand objects per request."""
        for part in parts(keys, LISTED):
            paths = [self._path(key) for key in part]
            self._do(lambda paths=paths: self._remove(paths))  # type: ignore[misc]

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Let the service copy an object of its own."""
        if not isinstance(source, ObstoreRunStore) or source._place != self._place:
            self.put(key, source.read(source_key))
            return
        with missing_source(source.url, source_key):
            self._do(lambda: self._store.copy(source._path(source_key), self._path(key)))

    def free_bytes(self) -> int | None:
        """Object stores have no known limit."""
        return None

    def debris(self) -> dict[str, int]:
        """What is written here is written by one request, so that killed writers leave nothing."""
        return {}

    @property
    def _place(self) -> tuple[str, str]:
        return self._service, self._bucket

    def _client(self) -> Any:
        try:
            from obstore.store import GCSStore, S3Store
        except ImportError as error:
            raise ConfigError(f"{self.url} needs a package: {error}. Try: pip install 'ntkpipe[obstore]'") from None
        with storage_errors(self.url):
            if self._service == "gs":
                return GCSStore(self._bucket)
            options: dict[str, Any] = {"client_options": {"allow_http": True}} if self._is_plain_and_allowed() else {}
            attempts = os.environ.get(ATTEMPTS, "")
            if attempts.isdecimal() and int(attempts):
                options["retry_config"] = {"max_retries": int(attempts) - 1}
            return S3Store(self._bucket, **options)

    def _is_plain_and_allowed(self) -> bool:
        endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
        if not endpoint.startswith("http://"):
            return False
        if urlsplit(endpoint).hostname in LOOPBACK or os.environ.get(ALLOW_HTTP, "").lower() in ("1", "true"):
            return True
        raise ConfigError(
            f"{self.url}: the endpoint in the environment begins with http://, over which data travels unprotected. Use "
            f"https://, or allow it with {ALLOW_HTTP}=true."
        )

    def _do(self, operation: Callable[[], Result]) -> Result:
        with storage_errors(self.url):
            return persist(operation)

    def _read(self, path: str) -> memoryview | None:
        try:
            return memoryview(self._store.get(path).bytes())
        except FileNotFoundError:
            return None

    def _head(self, key: str) -> dict[str, Any] | None:
        def head() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self._store.head(self._path(key))
            except FileNotFoundError:
                return None
            return found

        return self._do(head)

    def _remove(self, paths: list[str]) -> None:
        # GCS says that an object was not there, S3 does not; for the others of the list nothing follows from it.
        try:
            self._store.delete(paths)
        except FileNotFoundError:
            if len(paths) > 1:
                for path in paths:
                    self._remove([path])

    def _path(self, key: str) -> str:
        return f"{self._root}/{checked_key(key)}" if self._root else checked_key(key)
