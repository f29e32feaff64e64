"""The form of a run's documents: JSON, versioned, frozen, strict about their fields, some of them sealed."""

import json
from typing import Any, Final, Self

import google_crc32c
from pydantic import BaseModel, ConfigDict, ValidationError

from ntkpipe.configs.canonical import canonical_json
from ntkpipe.configs.errors import StorageError

SEAL: Final = "seal"
"""The field with the checksum of a document that must not change unnoticed; see :func:`seal_of`."""

SEALED_SINCE: Final = 2
"""The schema version from which on such documents are sealed."""


class Record(BaseModel):
    """A document of a run. One with a field ``seal`` is sealed when it is encoded, and checked when it is parsed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def parse(cls, data: bytes, where: str, advice: str = "") -> Self:
        """Read a document.

        Args:
            data: The document.
            where: Its name in errors.
            advice: What to do if it cannot be read; a sentence.

        Raises:
            StorageError: It is damaged, or of an unknown version.
        """
        try:
            found = cls.model_validate_json(data)
        except ValidationError as error:
            finding = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in finding["loc"])
            text = f"{place}: {finding['msg']}" if place else finding["msg"]
            raise StorageError(
                f"{where} cannot be read ({text}). It is damaged, or was written by another version. {advice}".rstrip()
            ) from None
        if SEAL in cls.model_fields:
            _check_seal(json.loads(data), where, advice)
        return found

    def encode(self) -> bytes:
        """Return the document as JSON."""
        if SEAL not in type(self).model_fields:
            return self.model_dump_json(indent=1).encode()
        seal = seal_of(json.loads(self.model_dump_json()))
        return self.model_copy(update={SEAL: seal}).model_dump_json(indent=1).encode()


def seal_of(document: dict[str, Any]) -> str:
    """Return crc32c of a document's canonical JSON without its seal, in hexadecimal; it outlives changes of layout."""
    text = canonical_json({name: value for name, value in document.items() if name != SEAL})
    return f"{google_crc32c.value(text.encode()):08x}"


def _check_seal(document: dict[str, Any], where: str, advice: str) -> None:
    if document["schema_version"] < SEALED_SINCE:
        return
    stored = document.get(SEAL, "")
    try:
        found = seal_of(document)
    except ValueError:  # such as infinity, which Python reads from JSON, but JSON does not have
        found = "none"
    if stored != found:
        raise StorageError(
            f"{where} cannot be read: it is damaged (its seal is {stored!r}, its content gives {found!r}). {advice}".rstrip()
        )
