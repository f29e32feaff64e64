"""Where a run lives: small objects and one zarr store under one URL."""

import errno
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

import fsspec
import zarr.abc.store
from fsspec.implementations.local import LocalFileSystem
from zarr.storage import FsspecStore, LocalStore

from ntkpipe.configs.base import unknown_name
from ntkpipe.configs.errors import ConfigError, NotFoundError, NtkPipeError, StorageError

EXCLUSIVE_PROTOCOLS = ("memory", "s3", "gs", "gcs")
"""Object stores whose fsspec ``mode="create"`` was found to let exactly one of several writers win."""


class AbstractStore(ABC):
    """One run's place: keys are relative paths with ``/``, values are small objects.

    Attributes:
        url: Where the run lives.
        shared: Whether other processes see the same content.
    """

    url: str
    shared: bool

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Create an object; False, with nothing changed, when it exists. Of several racing writers one wins."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Create or replace an object; readers see the old or the new content, never a part."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """Return an object's content, None when there is none."""

    @abstractmethod
    def names(self, prefix: str) -> list[str]:
        """Return the sorted keys of all objects below ``prefix``."""

    @abstractmethod
    def folders(self) -> list[str]:
        """Return the sorted names of the folders right below the store's root, without looking into them."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object if it exists."""

    @abstractmethod
    def zarr_store(self, key: str, *, read_only: bool) -> zarr.abc.store.Store:
        """Return a zarr store rooted at ``key``."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Return how many bytes still fit, None when the store has no known limit."""

    def read(self, key: str) -> bytes:
        """Return an object's content.

        Raises:
            NotFoundError: There is no such object.
        """
        data = self.get(key)
        if data is None:
            raise NotFoundError(f"{self.url} has no {key}.")
        return data


@final
class LocalRunStore(AbstractStore):
    """A folder of the local file system."""

    shared = True

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write a temporary file, then link it to its name: the link is what the file system makes exclusive."""
        path = self.root / key
        with storage_errors(self.url), self._temporary(path, data) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write a temporary file and rename it over the old one."""
        path = self.root / key
        with storage_errors(self.url), self._temporary(path, data) as temporary:
            os.replace(temporary, path)

    def get(self, key: str) -> bytes | None:
        """Read a file."""
        with storage_errors(self.url):
            try:
                return (self.root / key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def names(self, prefix: str) -> list[str]:
        """Walk a folder, leaving out files that are still being written."""
        found = []
        with storage_errors(self.url):
            for folder, _, files in os.walk(self.root / prefix):
                relative = Path(folder).relative_to(self.root).as_posix()
                found += [f"{relative}/{file}" for file in files if not file.endswith(".partial")]
        return sorted(found)

    def folders(self) -> list[str]:
        """List a folder."""
        with storage_errors(self.url):
            try:
                return sorted(item.name for item in self.root.iterdir() if item.is_dir())
            except FileNotFoundError:
                return []

    def delete(self, key: str) -> None:
        """Unlink a file."""
        with storage_errors(self.url):
            (self.root / key).unlink(missing_ok=True)

    def zarr_store(self, key: str, *, read_only: bool) -> zarr.abc.store.Store:
        """Return zarr's own local store: it writes chunks by renaming, which fsspec's ``file://`` does not."""
        return LocalStore(self.root / key, read_only=read_only)

    def free_bytes(self) -> int | None:
        """Ask the file system of the nearest folder that exists."""
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    @contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            temporary.write_bytes(data)
            yield temporary
        finally:
            # After a rename there is nothing left to remove.
            with suppress(FileNotFoundError):
                temporary.unlink()


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

    def names(self, prefix: str) -> list[str]:
        """List objects in one recursive call."""
        with storage_errors(self.url):
            self._fs.invalidate_cache()
            try:
                found: list[str] = self._fs.find(self._path(prefix))
            except FileNotFoundError:
                return []
        return sorted(path.removeprefix(self._root).lstrip("/") for path in found)

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

    def zarr_store(self, key: str, *, read_only: bool) -> zarr.abc.store.Store:
        """Return an fsspec-backed zarr store with its own asynchronous file system."""
        return FsspecStore.from_url(f"{self.url.rstrip('/')}/{key}", read_only=read_only)

    def free_bytes(self) -> int | None:
        """Object stores have no known limit."""
        return None

    def _path(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"


def open_store(url: str | os.PathLike[str]) -> AbstractStore:
    """Return the store of a path or URL; nothing is created or checked yet.

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


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn operating system and client errors into a StorageError that says what to do."""
    try:
        yield
    except (NtkPipeError, FileExistsError, AssertionError):
        raise
    except OSError as error:
        raise StorageError(f"{url}: {_advice(error)}") from error
    except Exception as error:
        # Clients of object stores have errors of their own, such as missing credentials.
        raise StorageError(f"{url}: {type(error).__name__}: {error}") from error


def _advice(error: OSError) -> str:
    advice: dict[int | None, str] = {
        errno.ENOSPC: "the disk is full. What was committed is safe: free some space, then run `ntkpipe resume`.",
        errno.EDQUOT: "the disk quota is used up. What was committed is safe: free some space, then `ntkpipe resume`.",
        errno.EACCES: "permission denied. Choose another place with --out, or change its permissions.",
        errno.EPERM: "the file system does not permit this, or cannot make hard links. Choose another place with --out.",
        errno.EROFS: "the file system is read-only. Choose another place with --out.",
        errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another place with --out.",
    }
    return advice.get(error.errno) or f"storage failed: {error}"
