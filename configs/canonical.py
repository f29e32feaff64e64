"""Canonical JSON, digests, and the field-by-field difference of two documents."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def canonical_json(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no white space, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def differences(stored: Any, asked: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield ``(path, stored value, asked value)`` for every leaf in which two JSON documents differ.

    A leaf that only one document has is compared with None.
    """
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        for key in sorted({*stored, *asked}):
            yield from differences(stored.get(key), asked.get(key), f"{path}.{key}" if path else str(key))
    elif _is_list(stored) and _is_list(asked) and len(stored) == len(asked):
        for index, (one, other) in enumerate(zip(stored, asked, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif stored != asked:
        yield path, stored, asked


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
