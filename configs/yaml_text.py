"""YAML as data and nothing else: the safe loader, and no more values than a configuration can need."""

from typing import Any

import yaml

from ntkpipe.configs.errors import ConfigError

MAX_BYTES = 16 * 2**20
"""Of a configuration file."""

MAX_VALUES = 1_000_000
"""Of a configuration, those of aliases counted wherever they are used."""

MAX_DEPTH = 100
"""Of sections in sections."""


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text says, as plain values.

    Args:
        text: The text.
        where: What it is, for error messages.

    Raises:
        ConfigError: It is not valid YAML, has tags that would build objects, is too large, or holds itself.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where} is {len(text):,} characters long; a configuration has at most {MAX_BYTES:,}.")
    try:
        document = yaml.safe_load(text)
    except RecursionError:
        raise ConfigError(f"{where} nests sections deeper than {MAX_DEPTH}, or holds itself.") from None
    # Beside its own errors the loader raises whatever Python does for numbers and dates that do not exist.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, OverflowError, AttributeError) as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    _measure(document, where, {}, 0)
    return document


def _measure(value: Any, where: str, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return how many values there are with aliases written out, and how deep; each object is looked at once."""
    if not isinstance(value, dict | list | set | tuple):
        return 1, 0
    if id(value) not in known:
        items = [*value, *value.values()] if isinstance(value, dict) else value
        # Whatever holds itself gets too deep.
        parts = [_measure(item, where, known, depth + 1) for item in items] if depth <= MAX_DEPTH else []
        known[id(value)] = 1 + sum(size for size, _ in parts), 1 + max((height for _, height in parts), default=0)
    size, height = known[id(value)]
    if depth > MAX_DEPTH or height > MAX_DEPTH:
        raise ConfigError(f"{where} nests sections deeper than {MAX_DEPTH}, or holds itself.")
    if size > MAX_VALUES:
        raise ConfigError(f"{where} has more than {MAX_VALUES:,} values once its aliases are written out.")
    return size, height


def to_yaml(document: Any) -> str:
    """Return plain values as a YAML text that :func:`parse_yaml` reads, keys in their order."""
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=False)
    return text
