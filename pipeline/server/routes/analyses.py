"""What analyses have left."""

from typing import Annotated, Final

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.pipeline.server.answers import answered, caching, document, etag_of
from ntkpipe.pipeline.server.documents import FileList
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import RunName
from ntkpipe.pipeline.server.service import ServiceOf

router = APIRouter(prefix="/runs/{run}/analyses/{analysis}", tags=["analyses"])

MEDIA_TYPES: Final = {"png": "image/png", "csv": "text/csv; charset=utf-8", "json": "application/json"}
"""Anything else could be something that a browser runs."""

OTHER: Final = "application/octet-stream"

AnalysisName = Annotated[str, Path(description="Of an analysis in the configuration.")]

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}


@router.get("", response_model=FileList, responses={304: {"description": "Unchanged."}, **problems(409)})
def files(request: Request, service: ServiceOf, run: RunName, analysis: AnalysisName) -> Response:
    """List the files of an analysis."""
    opened = service.open(run, request)
    found = [key.rpartition("/")[2] for key in opened.run.analysis_files(analysis)]
    return answered(
        request,
        lambda: etag_of(opened.digest, "files", analysis, opened.reader.analysis_version(analysis)),
        lambda etag: document(FileList(files=found), etag),
    )


@router.get(
    "/{file}",
    response_model=None,
    responses={
        200: {
            "description": "The file.",
            "content": {"image/png": _BINARY, "text/csv": _BINARY, "application/json": {}, OTHER: _BINARY},
        },
        304: {"description": "Unchanged."},
        **problems(409),
    },
)
def file(
    request: Request,
    service: ServiceOf,
    run: RunName,
    analysis: AnalysisName,
    file: Annotated[str, Path(description="One of its files, such as summary.json.")],
) -> Response:
    """Return a file of an analysis."""
    opened = service.open(run, request)
    found = [key.rpartition("/")[2] for key in opened.run.analysis_files(analysis)]
    if file not in found:
        raise NotFoundError(f"analysis {analysis!r} has left no {file[:100]!r}. Its files are: {', '.join(found)}.")
    media_type = MEDIA_TYPES.get(file.rpartition(".")[2], OTHER)
    return answered(
        request,
        lambda: etag_of(opened.digest, "file", analysis, file, opened.reader.analysis_version(analysis)),
        lambda etag: Response(opened.run.analysis(analysis, file), media_type=media_type, headers=caching(etag)),
    )
