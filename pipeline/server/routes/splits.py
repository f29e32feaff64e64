"""What is stored per sample: ids, labels, outputs."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import NotFoundError
from ntkpipe.pipeline.server.answers import document, etag_of, not_modified
from ntkpipe.pipeline.server.arrays import ARRAY, Wanted, array_answer, digest_of, names_of, selected
from ntkpipe.pipeline.server.documents import IdList
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import (
    ArrayQuestion,
    IdsQuestion,
    OutputsForm,
    OutputsOptions,
    OutputsQuestion,
    RunName,
    SplitName,
)
from ntkpipe.pipeline.server.service import Service, ServiceOf
from ntkpipe.storage.arrays import Array

router = APIRouter(prefix="/runs/{run}/splits/{split}", tags=["samples"])


@router.get("/ids", response_model=IdList, responses={304: {"description": "Unchanged."}, **problems(409)})
def ids(
    request: Request, service: ServiceOf, run: RunName, split: SplitName, question: Annotated[IdsQuestion, Query()]
) -> Response:
    """List sample ids of a split, in order of their positions."""
    opened = service.open(run, request)
    found = opened.run.ids(split)
    etag = etag_of(opened.digest, opened.reader.samples_version(split), "ids", split, question.start, question.stop)
    page = IdList(ids=found[question.start : question.stop], num_samples=len(found))
    return not_modified(request, etag) or document(page, etag)


@router.get("/labels", response_model=None, responses=ARRAY)
def labels(
    request: Request, service: ServiceOf, run: RunName, split: SplitName, question: Annotated[ArrayQuestion, Query()]
) -> Response:
    """Return the labels of a split: classes, (N,), or real targets, (N, T)."""
    opened = service.open(run, request)
    geometry = opened.run.manifest.geometry
    names = opened.run.ids(split)
    shape = geometry.splits[split]
    if shape.labels == "none":
        raise NotFoundError(f"{opened.store.url}: split {split!r} has no labels.")

    def read() -> Array:
        found = opened.run.labels(split)
        if found is None:
            raise NotFoundError(f"{opened.store.url}: split {split!r} has no labels.")
        return found

    wanted = Wanted(
        (shape.num_samples,) if shape.labels == "classes" else (shape.num_samples, shape.num_targets),
        lambda: opened.reader.samples_version(split),
        lambda: names,
        read,
        which=("labels", split),
    )
    return array_answer(request, service, opened, wanted, question.format)


@router.get("/outputs", response_model=None, responses=ARRAY)
def outputs(
    request: Request, service: ServiceOf, run: RunName, split: SplitName, question: Annotated[OutputsQuestion, Query()]
) -> Response:
    """Return the network's outputs on samples of a split, (M, C)."""
    return _outputs(request, service, run, split, question.rows, question)


@router.post("/outputs", response_model=None, responses=ARRAY)
def outputs_of_form(
    request: Request, service: ServiceOf, run: RunName, split: SplitName, question: OutputsForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _outputs(request, service, run, split, question.rows, question)


def _outputs(
    request: Request,
    service: Service,
    run: str,
    split: str,
    rows: str | list[int] | list[str],
    options: OutputsOptions,
) -> Response:
    opened = service.open(run, request)
    at = selected(opened.run, split, rows)
    wanted = Wanted(
        (len(at), opened.run.manifest.geometry.num_outputs),
        lambda: opened.reader.outputs_version(split, at),
        lambda: names_of(opened.run, split, at),
        lambda: opened.run.outputs(split, options.member, at),
        which=("outputs", split, options.member, digest_of(at)),
    )
    return array_answer(request, service, opened, wanted, options.format)
