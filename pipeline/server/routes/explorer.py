"""What is outside the versioned paths: the explorer, a sign of life, and figures for Prometheus."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from ntkpipe.pipeline.server.answers import CHANGING, document
from ntkpipe.pipeline.server.documents import Health
from ntkpipe.pipeline.server.metrics import MEDIA_TYPE
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.service import ServiceOf

router = APIRouter(tags=["service"])

STATIC: Final = Path(str(files("ntkpipe.pipeline.server"))) / "static"

# The browser asks each time whether the explorer is still the same, so that it fits the service after an update.
REVALIDATED: Final = {"cache-control": "no-cache"}


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


def add_explorer(app: FastAPI) -> None:
    """Serve the explorer's page and its files."""

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(STATIC / "index.html", headers=REVALIDATED)

    app.mount("/static", StaticFiles(directory=STATIC, follow_symlink=False), name="static")
