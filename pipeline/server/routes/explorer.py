"""What is outside the versioned paths: the explorer, a sign of life, and figures for Prometheus."""

from importlib.resources import files
from pathlib import Path
from typing import Final, final

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from ntkpipe.pipeline.server.answers import CHANGING, document
from ntkpipe.pipeline.server.documents import Health
from ntkpipe.pipeline.server.metrics import MEDIA_TYPE
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.service import ServiceOf

router = APIRouter(tags=["service"])

STATIC: Final = Path(str(files("ntkpipe.pipeline.server"))) / "static"

REVALIDATED: Final = "no-cache"
"""The browser asks each time whether a file is still the same: modules of two versions would not fit each other."""


@router.get("/healthz", response_model=Health, responses=problems())
async def health() -> Response:
    """Say that the service answers; it needs no token and no storage."""
    return document(Health())


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"description": "Prometheus text.", "content": {"text/plain": {}}}, **problems()},
)
def metrics(service: ServiceOf) -> Response:
    """Return figures for Prometheus."""
    return Response(service.metrics.text(), media_type=MEDIA_TYPE, headers=CHANGING)


@final
class ExplorerFiles(StaticFiles):
    """The files of the explorer, each with an ETag that the browser asks about before it uses what it has."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return a file, or that it has not changed."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = REVALIDATED
        return response


def add_explorer(app: FastAPI) -> None:
    """Serve the explorer's page and its files."""
    static = ExplorerFiles(directory=STATIC, follow_symlink=False)

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await static.get_response("index.html", request.scope)

    app.mount("/static", static, name="static")
