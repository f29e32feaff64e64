"""The base of all configuration sections: frozen, strict about keys, and split into semantic and runtime fields."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

LONGEST = 200
"""Characters of a name that is compared with others and repeated in a message; the time grows with their square."""


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that looks most like ``name``, or None when nothing is close."""
    if len(name) > LONGEST:
        return None
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(what: str, name: str, valid: Iterable[str]) -> str:
    """Say that ``name`` is no valid ``what``, suggest the nearest one and list them all."""
    names = sorted(valid)
    suggestion = nearest_name(name, names)
    name = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
    hint = f"; did you mean {suggestion!r}?" if suggestion else "."
    return f"unknown {what} {name!r}{hint} Valid: {', '.join(names)}"


class Section(BaseModel):
    """A part of a configuration.

    Sections are immutable and refuse unknown keys, naming the nearest valid one. Fields named in
    ``runtime_fields`` say how a run is carried out, not what it computes: they stay out of the digest and may
    change between a run and its resumption.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    runtime_fields: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _suggest_nearest_key(cls, data: object) -> object:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key", "{text}", {"text": unknown_name("key", str(key), cls.model_fields)}
                    )
        return data

    def departs(self, field: str) -> bool:
        """Return whether a field differs from its default: what is stored names all fields, given or not."""
        return bool(getattr(self, field) != type(self).model_fields[field].default)

    def semantic(self) -> dict[str, Any]:
        """Return the fields that determine the numbers, as plain JSON values."""
        return {
            name: _semantic_value(getattr(self, name))
            for name in type(self).model_fields
            if name not in self.runtime_fields
        }


def _semantic_value(value: object) -> Any:
    if isinstance(value, Section):
        return value.semantic()
    if isinstance(value, Mapping):
        return {str(key): _semantic_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_semantic_value(item) for item in value]
    return value
