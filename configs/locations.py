"""Where files are: paths, URLs, and files inside packages."""

import os
from typing import Annotated

from pydantic import AfterValidator


def _absolute(location: str) -> str:
    if not location or any(ord(char) < 32 or ord(char) == 127 for char in location):
        raise ValueError("expected a path or URL, which is not empty and has no control characters")
    return location if "://" in location else os.path.abspath(location)


Location = Annotated[str, AfterValidator(_absolute)]
"""A path, a URL, or ``package://package.module/file``. A relative path is taken from the folder in which the
configuration is read, and kept absolute, so that a run can be resumed from anywhere."""
