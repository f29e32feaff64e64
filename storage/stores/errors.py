"""Errors of file systems and of clients of object stores, as errors that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from ntkpipe.configs.errors import NotFoundError, NtkPipeError, StorageError
from ntkpipe.configs.secrets import redacted

LONGEST_TEXT = 300
"""Characters of a client's message that are passed on; some clients tell whole exchanges."""

ADVICE: dict[int | None, str] = {
    errno.ENOSPC: "the disk is full. What was committed is safe: free some space, then run `ntkpipe resume`.",
    errno.EDQUOT: "the disk quota is used up. What was committed is safe: free some space, then `ntkpipe resume`.",
    errno.EACCES: "permission denied. Choose another place, or change its permissions.",
    errno.EPERM: "the file system does not permit this, or cannot make hard links. Choose another place.",
    errno.EROFS: "the file system is read-only. Choose another place.",
    errno.EEXIST: "a part of the path is a file, not a folder. Choose another place.",
    errno.ENOTDIR: "a part of the path is a file, not a folder. Choose another place.",
    errno.ELOOP: "symbolic links of the path lead in circles. Choose another place.",
    errno.ENAMETOOLONG: "a name is longer than the file system allows. Choose a shorter place, or shorter names.",
}

METADATA_SERVICES = ("169.254.169.254", "metadata.google.internal")
"""Where clients ask for credentials when nobody has given them any."""

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
        return _no_bucket(_text(error))
    if isinstance(error, IsADirectoryError):
        place = error.filename2 or error.filename
        return f"{place} is a folder, where an object of the run belongs. Remove it, then go on with `ntkpipe resume`."
    return f"the store failed ({_text(error)}). {LATER}"


def _client_advice(error: Exception) -> str:
    name = type(error).__name__
    if "404 Not Found" in str(error):
        return _no_bucket(f"{name}: {_text(error)}")
    if any(service in str(error) for service in METADATA_SERVICES):
        return (
            f"there are no credentials in the environment, and the machine gives none ({name}: {_text(error)}). Set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS."
        )
    if "Credential" in name or "Unauthenticated" in name or "PermissionDenied" in name:
        return f"access denied ({name}: {_text(error)}). Check the credentials in the environment, and what they may do here."
    return f"the store failed or does not answer ({name}: {_text(error)}). {LATER}"


def _no_bucket(text: str) -> str:
    return f"there is no such bucket or folder ({text}). Create the bucket first, or check the URL."


def _text(error: Exception) -> str:
    # What is cut is no longer known to be a secret.
    lines = redacted(str(error)).strip().splitlines()
    return lines[0][:LONGEST_TEXT].rstrip(" .") if lines else type(error).__name__


@contextmanager
def missing_source(url: str, key: str) -> Iterator[None]:
    """Tell a copy whose source does not exist from other failures of a store.

    Raises:
        NotFoundError: The client has found no object to copy.
    """
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise NotFoundError(f"{url} has no {key}.") from None
        raise
