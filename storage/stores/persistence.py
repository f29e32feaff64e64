"""Trying again where a client of an object store gives up too early, and finding out what its tries have done."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from ntkpipe.configs.errors import NtkPipeError

TRIES = 8
"""Of one operation, whose client may have made several requests for each."""

PATIENCE_SECONDS = 10.0
"""No further try begins later than this after the first: the client has tried for long enough, and a service that is
down is for people, not for loops."""

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0

FINAL_TYPES = (
    NtkPipeError,
    AssertionError,
    FileExistsError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    PermissionError,
    TypeError,
    ValueError,
)
FINAL_NUMBERS = (errno.EINVAL, errno.ENOSYS, errno.ENAMETOOLONG)
FINAL_NAMES = ("Credential", "ParamValidation", "PermissionDenied", "Unauthenticated", "NotSupported", "InvalidPath")
"""In names of the clients' own errors, which are not imported here."""

Result = TypeVar("Result")


class UnsettledError(Exception):
    """A service says that an object exists, and that it does not: another writer is at work, or has just removed it."""


def settled(found: bytes | None, data: bytes) -> bool:
    """Return whether an object that could not be created, because it exists, is the one that an earlier try has written.

    Args:
        found: Its content; None if there is no such object.
        data: What was to be written.

    Raises:
        UnsettledError: There is no such object; creating it may be tried again.
    """
    if found is None:
        raise UnsettledError("an object could not be created because it exists, and it does not exist")
    return found == data


def persist(operation: Callable[[], Result]) -> Result:
    """Carry out an operation that may be repeated, again if it fails in a way that may pass; pauses are random.

    Args:
        operation: Has the same effect however often it is carried out.

    Raises:
        Exception: Of the last try.
    """
    began = time.monotonic()
    for attempt in range(TRIES):
        try:
            return operation()
        except Exception as error:
            if _is_final(error) or attempt == TRIES - 1 or time.monotonic() - began > PATIENCE_SECONDS:
                raise
            time.sleep(random.uniform(0, min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)))
    raise AssertionError("the last try returns or raises")


def _is_final(error: Exception) -> bool:
    if isinstance(error, FINAL_TYPES) or (isinstance(error, OSError) and error.errno in FINAL_NUMBERS):
        return True
    return any(part in type(error).__name__ for part in FINAL_NAMES)
