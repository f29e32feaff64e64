"""Kernels as pictures: overviews, tiles, orders, what a pixel shows, and how alike two kernels are."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import ChunkNotReadyError, ConfigError, NotFoundError
from ntkpipe.pipeline.pictures.colours import DIVERGING, PALETTES, hex_colours, symmetric
from ntkpipe.pipeline.pictures.drawing import draw_tile
from ntkpipe.pipeline.pictures.gallery import possible_orders
from ntkpipe.pipeline.pictures.overview import Overview
from ntkpipe.pipeline.pictures.workshop import Building
from ntkpipe.pipeline.query.formats import Answer, encode
from ntkpipe.pipeline.query.matrices import KernelQuery
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.server.answers import CHANGING, JSON, caching, document, etag_of, not_modified
from ntkpipe.pipeline.server.background import BUILDING, building, gallery_of
from ntkpipe.pipeline.server.documents import ArrayDocument
from ntkpipe.pipeline.server.picture_documents import (
    CompareAsked,
    ComparisonDocument,
    HoverAsked,
    HoverDocument,
    OrderAsked,
    OrderedAsked,
    OverviewDocument,
    PlaceDocument,
    TileAsked,
)
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import KernelName, RunName
from ntkpipe.pipeline.server.routes import samples
from ntkpipe.pipeline.server.service import ServiceOf

KERNEL = "/runs/{run}/kernels/{kernel}"

UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "It is what the client has."}}

PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "A picture."}
}

OrderText = Annotated[str, Path(description="stored, id, class or cluster.")]

router = APIRouter(tags=["pictures"])
router.include_router(samples.router)


@router.get(
    KERNEL + "/overview",
    response_model=OverviewDocument,
    responses=BUILDING | UNCHANGED | problems(404, 409, 413, 422),
    summary="How a kernel is drawn",
)
def overview(
    run: RunName, kernel: KernelName, asked: Annotated[OrderedAsked, Query()], service: ServiceOf, request: Request
) -> Response:
    """Start to make the picture of a matrix, or tell all that is needed to show it. It is made once and kept in memory."""
    opened = service.open(run, request)
    query = opened.run.kernel(kernel, **asked.matrix)
    found = gallery_of(service).overview(opened.run, query, asked.order)
    if isinstance(found, Building):
        return building(found)
    etag = _etag(found, query, asked.order)
    if etag is not None and (same := not_modified(request, etag)) is not None:
        return same
    content = OverviewDocument(
        order=asked.order,
        orders=list(possible_orders(opened.run, query.name)),
        row_split=query.name.rows,
        column_split=query.name.columns,
        palettes={name: list(hex_colours(name)) for name in PALETTES},
        **found.describe(),
    )
    return document(content, etag)


@router.get(
    KERNEL + "/tiles/{level}/{row}/{column}.png",
    response_class=Response,
    responses=PNG | BUILDING | UNCHANGED | problems(404, 409, 413, 422),
    summary="A tile of the picture of a kernel",
)
def tile(
    run: RunName,
    kernel: KernelName,
    level: Annotated[int, Path(ge=0, le=64)],
    row: Annotated[int, Path(ge=0, le=2**40)],
    column: Annotated[int, Path(ge=0, le=2**40)],
    asked: Annotated[TileAsked, Query()],
    service: ServiceOf,
    request: Request,
) -> Response:
    """Draw 256 by 256 pixels. At level 0 one tile shows the whole matrix; every level has twice the pixels per side."""
    opened = service.open(run, request)
    query = opened.run.kernel(kernel, **asked.matrix)
    found = gallery_of(service).overview(opened.run, query, asked.order)
    if isinstance(found, Building):
        return building(found)
    low, high, palette = _colouring(found, asked)
    etag = _etag(found, query, asked.order, level, row, column, low, high, palette)
    if etag is not None and (same := not_modified(request, etag)) is not None:
        return same
    drawn = found.draw(level, row, column)
    headers = caching(etag) | {
        "ntkpipe-exact": "true" if drawn.exact else "false",
        "ntkpipe-entries": str(drawn.entries),
    }
    return Response(draw_tile(drawn.means, low, high, palette), media_type="image/png", headers=headers)


@router.get(
    KERNEL + "/order/{order}",
    response_model=ArrayDocument,
    responses=BUILDING | problems(404, 409, 413, 422),
    summary="The order in which samples are drawn",
)
def order(
    run: RunName,
    kernel: KernelName,
    order: OrderText,
    asked: Annotated[OrderAsked, Query()],
    service: ServiceOf,
    request: Request,
) -> Response:
    """Return the positions of samples, and their ids, in drawn order."""
    opened = service.open(run, request)
    query = opened.run.kernel(kernel, **asked.matrix)
    split = asked.split or query.name.rows
    ids = opened.run.ids(split)
    found = gallery_of(service).order(opened.run, query, split, order)
    if isinstance(found, Building):
        return building(found)
    answer = Answer(found.positions, [ids[position] for position in found.positions])
    return Response(encode(answer, "json"), media_type=JSON, headers=CHANGING)


@router.get(
    KERNEL + "/hover",
    response_model=HoverDocument,
    responses=BUILDING | problems(404, 409, 413, 422),
    summary="What a pixel of a kernel shows",
)
def hover(
    run: RunName, kernel: KernelName, asked: Annotated[HoverAsked, Query()], service: ServiceOf, request: Request
) -> Response:
    """Tell the samples of an entry and its value, or the mean behind the pixel that holds it."""
    opened = service.open(run, request)
    query = opened.run.kernel(kernel, **asked.matrix)
    found = gallery_of(service).overview(opened.run, query, asked.order)
    if isinstance(found, Building):
        return building(found)
    level = found.pyramid.num_levels - 1 if asked.level is None else asked.level
    value, rows, columns = found.pixel(level, asked.row, asked.column)
    entry = int(found.rows.positions[asked.row]), int(found.columns.positions[asked.column])
    content = HoverDocument(
        row=_place(opened.run, query.name.rows, entry[0], query.width),
        column=_place(opened.run, query.name.columns, entry[1], query.width),
        value=value,
        error=_error(opened.run, query, *entry) if rows * columns == 1 else None,
        of=rows * columns,
    )
    return document(content)


@router.get(
    "/runs/{run}/compare",
    response_model=ComparisonDocument,
    responses=BUILDING | problems(404, 409, 413, 422),
    summary="How alike two kernels are",
)
def compare(run: RunName, asked: Annotated[CompareAsked, Query()], service: ServiceOf, request: Request) -> Response:
    """Compare two kernels of the same training samples: of one run, or of two."""
    one = service.open(run, request).run
    other = service.open(asked.with_run).run if asked.with_run is not None else one
    first, second = one.kernel(asked.one, **asked.matrices), other.kernel(asked.other, **asked.matrices)
    found = gallery_of(service).comparison(one, first.name, other, second.name)
    if isinstance(found, Building):
        return building(found)
    content = ComparisonDocument(
        alignment=found.alignment,
        correlation=found.correlation,
        relative_difference=found.relative_difference,
        samples=found.num_compared,
        num_samples=found.num_samples,
        sampled=found.num_compared < found.num_samples,
    )
    return document(content)


def _etag(found: Overview, query: KernelQuery, *more: object) -> str | None:
    """Return the ETag of what is drawn; None while blocks are missing, which may be committed at any moment."""
    return None if found.num_missing_entries else etag_of(found.version, query.name, *more)


def _colouring(found: Overview, asked: TileAsked) -> tuple[float, float, str]:
    palette = asked.palette or found.palette
    low, high = found.range
    low, high = low if asked.low is None else asked.low, high if asked.high is None else asked.high
    if not low < high:
        raise ConfigError(f"low = {low:g} must be below high = {high:g}.")
    return (*(symmetric(low, high) if palette == DIVERGING else (low, high)), palette)


def _place(run: Run, split: str, entry: int, width: int) -> PlaceDocument:
    position = entry // width
    labels = run.labels(split)
    label = None if labels is None else labels[position].tolist()
    output = entry % width if width > 1 else None
    return PlaceDocument(id=run.ids(split)[position], position=position, label=label, output=output)


def _error(run: Run, query: KernelQuery, row: int, column: int) -> float | None:
    name = query.name
    if name.layers or name.transforms or query.width > 1:
        return None
    try:
        return float(run.standard_errors(name.kernel, name.rows, name.columns)[row, column])
    except (NotFoundError, ChunkNotReadyError):
        return None
