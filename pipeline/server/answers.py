"""From what was found to a response: documents, arrays in the format that was asked for, and what has not changed."""

from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from typing import Final

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

JSON: Final = "application/json"

CHANGING: Final = {"cache-control": "no-store"}
"""For what is different each time."""

ETAG_BYTES: Final = 16

_MAKER: Final = version("ntkpipe").encode()
"""Another version may tell the same in other bytes."""


def answered(request: Request, etag: Callable[[], str], make: Callable[[str | None], Response]) -> Response:
    """Return an answer with its ETag, or that it has not changed.

    While it is made, blocks may be committed or repaired: then nobody knows which of them it tells of, and it has no ETag.

    Args:
        request: That is answered.
        etag: Returns the ETag of the answer as it would be now; reads receipts at most.
        make: Reads, and returns the answer with the ETag that it is given.
    """
    before = etag()
    same = not_modified(request, before)
    if same is not None:
        return same
    response = make(before)
    if etag() != before:
        del response.headers["etag"]
        response.headers["cache-control"] = CHANGING["cache-control"]
    return response


def document(content: BaseModel, etag: str | None = None) -> Response:
    """Return a document; with an ETag where it tells what does not change."""
    return Response(content.model_dump_json(), media_type=JSON, headers=caching(etag))


def caching(etag: str | None) -> dict[str, str]:
    """Return the headers that say how long an answer holds: as long as its ETag, or not at all."""
    return CHANGING if etag is None else {"etag": etag, "cache-control": "private, no-cache", "vary": "accept"}


def etag_of(*parts: object) -> str:
    """Return the strong ETag of an answer that follows from some texts, bytes and numbers."""
    digest = sha256(_MAKER)
    for part in parts:
        text = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(text).to_bytes(8, "little") + text)
    return f'"{digest.hexdigest()[: 2 * ETAG_BYTES]}"'


def not_modified(request: Request, etag: str) -> Response | None:
    """Return the answer to a client that has what it asks for, None for others."""
    asked = request.headers.get("if-none-match")
    if asked is None:
        return None
    known = {part.strip().removeprefix("W/") for part in asked.split(",")}
    # "*" is for whoever has any answer: it is not known here whether there is one now.
    return Response(status_code=304, headers=caching(etag)) if etag in known else None
