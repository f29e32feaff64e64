"""Errors of file systems and of clients of object stores, as errors that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ntkpipe.configs.errors import NtkPipeError, StorageError
from ntkpipe.configs.secrets import redacted

LONGEST_TEXT = 300
"""Characters of a client's message that are passed on; some clients tell whole exchanges."""

ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full. What was committed is safe: free some space, then run `ntkpipe resume`.",
    errno.EDQUOT: "the disk quota is used up. What was committed is safe: free some space, then `ntkpipe resume`.",
    errno.EACCES: "permission denied. Choose another place with --out, or change its permissions.",
    errno.EPERM: "the file system does not permit this, or cannot make hard links. Choose another place with --out.",
    errno.EROFS: "the file system is read-only. Choose another place with --out.",
    errno.EEXIST: "a part of the path is a file, not a folder. Choose another place with --out.",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another place with --out.",
    errno.ELOOP: "symbolic links of the path lead in circles. Choose another place with --out.",
    errno.ENAMETOOLONG: "a name is longer than the file system allows. Choose a shorter place with --out, or shorter names.",
}

LATER = "What was committed is safe: when the store works again, go on with `ntkpipe resume`."


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn operating system and client errors into a StorageError that says what to do."""
    try:
        yield
    except (NtkPipeError, AssertionError):
        raise
    except OSError as error:
        raise StorageError(f"{url}: {_advice(error)}") from error
    except Exception as error:
        # Clients of object stores have errors of their own, such as missing credentials.
        raise StorageError(f"{url}: {_client_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in ADVICE:
        return ADVICE[error.errno]
    # Clients of object stores raise these without a number.
    if isinstance(error, PermissionError):
        return f"access denied ({_text(error)}). Check the credentials in the environment, and what they may do here."
    if isinstance(error, FileNotFoundError):
        return f"there is no such bucket or folder ({_text(error)}). Create the bucket first, or check the URL."
    return f"the store failed ({_text(error)}). {LATER}"


def _client_advice(error: Exception) -> str:
    name = type(error).__name__
    if "Credential" in name or "Unauthenticated" in name or "PermissionDenied" in name:
        return f"access denied ({name}: {_text(error)}). Check the credentials in the environment, and what they may do here."
    return f"the store failed or does not answer ({name}: {_text(error)}). {LATER}"


def _text(error: Exception) -> str:
    # What is cut is no longer known to be a secret.
    lines = redacted(str(error)).strip().splitlines()
    return lines[0][:LONGEST_TEXT].rstrip(" .") if lines else type(error).__name__
