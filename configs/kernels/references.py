"""How one stored matrix is named: ``trntk``, or ``trntk@late`` for one member of a model with several."""

import re

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.kernels.base import NAME_PATTERN

REFERENCE_PATTERN = NAME_PATTERN.removesuffix("$") + r"(@[A-Za-z0-9][A-Za-z0-9_.-]*)?$"


def split_reference(reference: str) -> tuple[str, str | None]:
    """Return the kernel's name and the member's, None where none is named.

    Raises:
        ConfigError: The text is no reference.
    """
    if not re.fullmatch(REFERENCE_PATTERN, reference):
        raise ConfigError(
            f"{reference!r} names no kernel; write NAME, or NAME@MEMBER for a model with several members."
        )
    name, _, member = reference.partition("@")
    return name, member or None
