"""What takes longer than a request may wait: made in the background; who asks early is told to ask again."""

from typing import Any, Final

from fastapi import Request
from starlette.responses import Response

from ntkpipe.pipeline.pictures.gallery import Gallery
from ntkpipe.pipeline.pictures.overview import PictureLimits
from ntkpipe.pipeline.pictures.samples import SampleShelf
from ntkpipe.pipeline.pictures.workshop import Building
from ntkpipe.pipeline.server.answers import CHANGING, JSON
from ntkpipe.pipeline.server.picture_documents import BuildingDocument
from ntkpipe.pipeline.server.service import Service

RETRY_SECONDS: Final = 1

AGAIN: Final = {"retry-after": str(RETRY_SECONDS)}

BUILDING: Final[dict[int | str, dict[str, Any]]] = {
    202: {"model": BuildingDocument, "description": "It is being made: ask again."}
}


def gallery_of(service: Service) -> Gallery:
    """Return the pictures and spectra of a service."""
    limits = PictureLimits(max_read_bytes=service.settings.picture_read_bytes)
    return service.part(Gallery, lambda: Gallery(limits=limits))


def shelf_of(service: Service) -> SampleShelf:
    """Return the samples of a service."""
    return service.part(SampleShelf, lambda: SampleShelf(trust_code=service.settings.trust_code))


def building(found: Building) -> Response:
    """Return the answer to who asks for what is not ready."""
    content = BuildingDocument(done=found.done_fraction)
    return Response(content.model_dump_json(), 202, CHANGING | AGAIN, JSON)


def would_ask_again(request: Request) -> bool:
    """Return whether a client would rather ask again than wait (RFC 7240)."""
    wishes = ",".join(request.headers.getlist("prefer")).split(",")
    return any(wish.partition(";")[0].strip().lower() == "respond-async" for wish in wishes)
