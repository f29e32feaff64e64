"""Whole files of the local file system: written beside their name, then renamed or linked to it."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ntkpipe.configs.errors import StorageError

PARTIAL = ".partial"
"""How names of files end that are still being written; zarr's local store does the same."""

_kept: set[Path] = set()
"""Folders whose names this process has made the disk keep."""


def replace_file(path: Path, data: bytes | memoryview, *, fsync: bool) -> None:
    """Create or replace a file; readers see the old or the new content.

    Args:
        path: Of the file; folders above it are created.
        data: The content.
        fsync: Return only when content and name would survive a power failure.
    """
    with _written(path, data, fsync=fsync) as temporary:
        os.replace(temporary, path)
        if fsync:
            sync_folder(path.parent)


def create_file(path: Path, data: bytes, *, fsync: bool) -> bool:
    """Create a file unless there is one; return whether this call has. The link is what the file system makes exclusive."""
    with _written(path, data, fsync=fsync) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # A network file system that repeats a request whose answer was lost reports its own link.
            if not _same_file(temporary, path):
                return False
        if fsync:
            sync_folder(path.parent)
    return True


def link_file(source: Path, path: Path, *, fsync: bool) -> bool:
    """Create or replace a file by another name of an existing one; False if the file system cannot."""
    make_folder(path.parent, fsync=fsync)
    with _removed_at_the_end(path) as temporary, suppress(OSError):
        os.link(source, temporary)
        if fsync:
            _sync(temporary, os.O_RDONLY)  # whoever has written it may not have asked for that
        # Renaming one name of a file to another of the same file does nothing, which is right too.
        os.replace(temporary, path)
        if fsync:
            sync_folder(path.parent)
        return True
    return False


def make_folder(folder: Path, *, fsync: bool) -> None:
    """Create a folder and those above it; with ``fsync``, also make the disk keep their names, once per process."""
    if not fsync:
        folder.mkdir(parents=True, exist_ok=True)
        return
    # A folder that is there may have been made a moment ago by a process that has not come to keep it.
    if folder in _kept and folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent, fsync=True)
        folder.mkdir(exist_ok=True)
        # What may not be read, far above a run, was not made for it.
        with suppress(PermissionError):
            sync_folder(folder.parent)
    _kept.add(folder)


def sync_folder(folder: Path) -> None:
    """Make the disk keep the names in a folder."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inside(root: Path, key: str) -> Path:
    """Return the path of a checked key below a folder.

    The folder itself may be reached through links. Who can write to the folder while this runs can still swap a
    folder for a link between check and use; this guards against what was stored before.

    Raises:
        StorageError: A symbolic link leads out of the folder.
    """
    if leads_out(root, key):
        raise StorageError(
            f"{root}: {key} is a symbolic link to something outside the run; a run is never read or written through such "
            "links. Remove it, then look for damage with `ntkpipe verify`."
        )
    return Path(f"{os.fspath(root)}/{key}")


def leads_out(root: Path, key: str) -> bool:
    """Return whether a checked key is, or is behind, a symbolic link to something outside a folder."""
    path, linked = os.fspath(root), False
    for part in key.split("/"):
        path = f"{path}/{part}"
        linked = linked or os.path.islink(path)
    if not linked:
        return False
    found, base = os.path.realpath(path), os.path.realpath(root)
    return found != base and not found.startswith(f"{base.rstrip('/')}/")


@contextmanager
def _written(path: Path, data: bytes | memoryview, *, fsync: bool) -> Iterator[Path]:
    make_folder(path.parent, fsync=fsync)
    with _removed_at_the_end(path) as temporary:
        with open(temporary, "xb", buffering=0) as file:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[file.write(rest) :]
            if fsync:
                os.fsync(file.fileno())
        yield temporary


@contextmanager
def _removed_at_the_end(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        yield temporary
    finally:
        # After a rename there is nothing left to remove.
        with suppress(FileNotFoundError):
            temporary.unlink()


def _same_file(first: Path, second: Path) -> bool:
    try:
        return os.path.samefile(first, second)
    except FileNotFoundError:
        return False
