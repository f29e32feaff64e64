"""Errors of file systems and of clients of object stores, as errors that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ntkpipe.configs.errors import NtkPipeError, StorageError


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
