"""Samples named on the command line."""

import re

from ntkpipe.configs.errors import ConfigError

_SLICE = re.compile(r"^(-?\d*):(-?\d*)(?::(-?\d+))?$")


def parse_selection(text: str) -> slice | list[int] | list[str]:
    """Turn ``0:10``, ``3``, ``1,5,7``, ``id:NAME`` or ``id:NAME,id:OTHER`` into an index.

    Raises:
        ConfigError: The text is none of these.
    """
    match = _SLICE.match(text)
    if match:
        start, stop, step = (int(part) if part else None for part in match.groups())
        if step == 0:
            raise ConfigError(f"{text!r} has a step of 0.")
        return slice(start, stop, step)
    parts = text.split(",")
    if all(part.startswith("id:") for part in parts):
        return [part.removeprefix("id:") for part in parts]
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise ConfigError(f"{text!r} selects no samples; write 0:10, 3, 1,5,7, id:NAME or id:NAME,id:OTHER.") from None
