"""A sample as people look at it: its image or text, what the network and the solutions say of it."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from ntkpipe.configs.errors import ConfigError, NotFoundError, StorageError
from ntkpipe.pipeline.pictures.samples import Shown
from ntkpipe.pipeline.pictures.workshop import Building
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.server.answers import caching, document, etag_of, not_modified
from ntkpipe.pipeline.server.background import AGAIN, BUILDING, building, shelf_of
from ntkpipe.pipeline.server.picture_documents import SampleDocument
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import RunName, SplitName
from ntkpipe.pipeline.server.service import ServiceOf

SAMPLE = "/runs/{run}/splits/{split}/samples/{sample:path}"

MAX_DIGITS = 15

SampleName = Annotated[str, Path(description="A position, or id:NAME.")]

PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}, "description": "An image."},
    304: {"description": "It is what the client has."},
}

router = APIRouter(tags=["samples"])


@router.get(
    SAMPLE + "/picture",
    response_class=Response,
    responses=PICTURE | BUILDING | problems(404, 422),
    summary="The image of a sample",
)
def picture(run: RunName, split: SplitName, sample: SampleName, service: ServiceOf, request: Request) -> Response:
    """Return a sample's input as an image, one pixel for each of its own; 404 where it is none.

    The data set is loaded in the background when its first sample is asked for.
    """
    opened = service.open(run, request)
    position = position_of(opened.run, split, sample)
    shown = shelf_of(service).show(opened.run, opened.store, split, position)
    if isinstance(shown, Building):
        return building(shown)
    if shown.png is None:
        raise NotFoundError(shown.why or f"sample {sample!r} is no image.")
    etag = etag_of(opened.run.manifest.run_id, split, position, shown.png.hex())
    headers = caching(etag)
    return not_modified(request, etag) or Response(shown.png, media_type="image/png", headers=headers)


@router.get(
    SAMPLE,
    response_model=SampleDocument,
    responses=problems(404, 422),
    summary="A sample",
)
def sample(run: RunName, split: SplitName, sample: SampleName, service: ServiceOf, request: Request) -> Response:
    """Tell what is known of a sample, and how it can be shown; ``loading`` until its data set is at hand: ask again."""
    opened = service.open(run, request)
    position = position_of(opened.run, split, sample)
    shown = shelf_of(service).show(opened.run, opened.store, split, position)
    labels = opened.run.labels(split)
    members = opened.run.manifest.geometry.members
    content = SampleDocument(
        id=opened.run.ids(split)[position],
        position=position,
        label=None if labels is None else labels[position].tolist(),
        outputs=None if members else _outputs(opened.run, split, None, position),
        member_outputs={
            member: found for member in members if (found := _outputs(opened.run, split, member, position)) is not None
        },
        predictions=_predictions(opened.run, split, position),
        **_shown(shown),
    )
    response = document(content)
    if isinstance(shown, Building):
        response.headers.update(AGAIN)
    return response


def _shown(shown: Shown | Building) -> dict[str, Any]:
    """Return the part of the document that says how a sample is shown."""
    if isinstance(shown, Building):
        return {"shown_as": "loading"}
    return {"shown_as": shown.kind, "text": shown.text, "why": shown.why}


def position_of(run: Run, split: str, sample: str) -> int:
    """Return the position of a sample that is given by its position or as ``id:NAME``.

    Raises:
        NotFoundError: There is no such sample.
        ConfigError: It is of neither form.
    """
    if sample.startswith("id:"):
        return int(run.positions(sample.removeprefix("id:"), split)[0])
    if not (sample.isascii() and sample.isdigit() and len(sample) <= MAX_DIGITS):
        raise ConfigError(f"{sample!r} is no sample; give a position, or id:NAME.")
    return int(run.positions(int(sample), split)[0])


def _outputs(run: Run, split: str, member: str | None, position: int) -> list[float] | None:
    try:
        values: list[float] = run.outputs(split, member, position)[0].tolist()
    except (NotFoundError, StorageError):
        return None  # there is no network, or it has not seen the sample yet
    return values


def _predictions(run: Run, split: str, position: int) -> dict[str, list[float]]:
    geometry = run.manifest.geometry
    found = {}
    for name in geometry.solutions:
        if split in geometry.predicted_splits(name):
            try:
                found[name] = run.predictions(name, split)[position].tolist()
            except StorageError:
                continue  # not committed yet
    return found
