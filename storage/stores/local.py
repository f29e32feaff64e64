"""Runs in a folder of the local file system."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

import zarr.abc.store
from zarr.storage import LocalStore

from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.errors import storage_errors

PARTIAL = ".partial"
"""How names of files end that are still being written; zarr's local store does the same."""


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

    def exists(self, key: str) -> bool:
        """Look for a file."""
        with storage_errors(self.url):
            return (self.root / key).is_file()

    def modified(self, key: str) -> float | None:
        """Ask the file system, which dates the files of all machines that write to it."""
        with storage_errors(self.url):
            try:
                return (self.root / key).stat().st_mtime
            except (FileNotFoundError, NotADirectoryError):
                return None

    def sizes(self, prefix: str) -> dict[str, int]:
        """Walk a folder, leaving out files that are still being written."""
        return {key: size for key, size in self._walk(prefix) if not key.endswith(PARTIAL)}

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

    def copy(self, source: AbstractStore, source_key: str, key: str) -> None:
        """Link to a file of the same file system, which costs no space: no file of a run is ever changed in place."""
        path = self.root / key
        with storage_errors(self.url):
            if isinstance(source, LocalRunStore):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = _temporary_name(path)
                with suppress(OSError):
                    os.link(source.root / source_key, temporary)
                    os.replace(temporary, path)
                    return
            self.put(key, source.read(source_key))

    def zarr_store(self, key: str, *, read_only: bool) -> zarr.abc.store.Store:
        """Return zarr's own local store: it writes chunks by renaming, which fsspec's ``file://`` does not."""
        return LocalStore(self.root / key, read_only=read_only)

    def free_bytes(self) -> int | None:
        """Ask the file system of the nearest folder that exists."""
        folder = self.root.absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def debris(self) -> dict[str, int]:
        """Find temporary files; those of a living writer are among them."""
        return {key: size for key, size in self._walk("") if key.endswith(PARTIAL)}

    def _walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        with storage_errors(self.url):
            for folder, folders, files in os.walk(self.root / prefix):
                folders.sort()
                relative = Path(folder).relative_to(self.root).as_posix()
                for file in sorted(files):
                    # It may be gone by now.
                    with suppress(FileNotFoundError):
                        yield f"{relative}/{file}".removeprefix("./"), os.stat(f"{folder}/{file}").st_size

    @contextmanager
    def _temporary(self, path: Path, data: bytes) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(path)
        try:
            temporary.write_bytes(data)
            yield temporary
        finally:
            # After a rename there is nothing left to remove.
            with suppress(FileNotFoundError):
                temporary.unlink()


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
