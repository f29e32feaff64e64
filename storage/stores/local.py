"""Runs in a folder of the local file system."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import final

from ntkpipe.storage.stores.base import AbstractStore, delete_each
from ntkpipe.storage.stores.errors import storage_errors
from ntkpipe.storage.stores.files import PARTIAL, create_file, inside, link_file, replace_file
from ntkpipe.storage.stores.keys import checked_key, checked_prefix


@final
class LocalRunStore(AbstractStore):
    """A folder of the local file system.

    Args:
        root: The folder; it may be reached through symbolic links, but none in it may lead out of it.
        fsync: Whether what is written must survive a power failure before work goes on.
    """

    shared = True
    reads_at_once = 4

    def __init__(self, root: Path, *, fsync: bool = False) -> None:
        self.root = root
        self.url = str(root)
        self.fsync = fsync

    def put_new(self, key: str, data: bytes) -> bool:
        """Write a temporary file, then link it to its name: the link is what the file system makes exclusive."""
        with storage_errors(self.url):
            return create_file(self._path(key), data, fsync=self.fsync)

    def put(self, key: str, data: bytes) -> None:
        """Write a temporary file and rename it over the old one."""
        with storage_errors(self.url):
            replace_file(self._path(key), data, fsync=self.fsync)

    def get(self, key: str) -> bytes | None:
        """Read a file."""
        with storage_errors(self.url):
            try:
                return self._path(key).read_bytes()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def get_writable(self, key: str) -> bytearray | None:
        """Read a file into memory that is written once."""
        with storage_errors(self.url):
            try:
                with open(self._path(key), "rb", buffering=0) as file:
                    data = bytearray(os.fstat(file.fileno()).st_size)
                    rest, count = memoryview(data), 0
                    while count < len(data) and (got := file.readinto(rest[count:])):
                        count += got
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
            rest.release()
            del data[count:]
            return data

    def read_into(self, key: str, memory: bytearray) -> int | None:
        """Read a file; bytes are copied once, while other threads run."""
        with storage_errors(self.url):
            try:
                with open(self._path(key), "rb", buffering=0) as file, memoryview(memory) as rest:
                    size, count = os.fstat(file.fileno()).st_size, 0
                    while count < min(size, len(memory)) and (got := file.readinto(rest[count:])):
                        count += got
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None
            return size if count == min(size, len(memory)) else count

    def exists(self, key: str) -> bool:
        """Look for a file."""
        with storage_errors(self.url):
            return self._path(key).is_file()

    def modified(self, key: str) -> float | None:
        """Ask the file system, which dates the files of all machines that write to it."""
        with storage_errors(self.url):
            path = self._path(key)
            try:
                return path.stat().st_mtime if path.is_file() else None
            except FileNotFoundError:
                return None

    def sizes(self, prefix: str) -> dict[str, int]:
        """Walk a folder, leaving out files that are still being written."""
        return dict(sorted((key, size) for key, size in self._walk(prefix) if not key.endswith(PARTIAL)))

    def folders(self) -> list[str]:
        """List a folder."""
        with storage_errors(self.url):
            try:
                return sorted(item.name for item in self.root.iterdir() if item.is_dir())
            except FileNotFoundError:
                return []

    def delete(self, key: str) -> None:
        """Unlink a file."""
        with storage_errors(self.url), suppress(NotADirectoryError):
            self._path(key).unlink(missing_ok=True)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Unlink files."""
        delete_each(self, keys)

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Link to a file of the same file system, which costs no space: no file of a run is ever changed in place."""
        with storage_errors(self.url):
            path = self._path(key)
            if isinstance(source, LocalRunStore) and link_file(source._path(source_key), path, fsync=self.fsync):
                return
            replace_file(path, source.read(source_key), fsync=self.fsync)

    def free_bytes(self) -> int | None:
        """Ask the file system of the nearest folder that exists."""
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def debris(self) -> dict[str, int]:
        """Find temporary files; those of a living writer are among them."""
        return {key: size for key, size in self._walk("") if key.endswith(PARTIAL)}

    def _path(self, key: str) -> Path:
        return inside(self.root, checked_key(key))

    def _walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        with storage_errors(self.url):
            top = self._path(prefix) if checked_prefix(prefix) else self.root
            start = len(f"{self.root}/")
            for folder, _, files in os.walk(top):
                for file in files:
                    # It may be gone by now.
                    with suppress(FileNotFoundError):
                        path = f"{folder}/{file}"
                        yield path[start:], os.stat(path).st_size
