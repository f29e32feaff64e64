"""Solutions: how they were found, their coefficients, their predictions, and where these come from."""

from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.names import AttributionSummary as Summary
from ntkpipe.pipeline.query.names import Neighbor, Positions
from ntkpipe.pipeline.server.answers import answered, document, etag_of
from ntkpipe.pipeline.server.arrays import ARRAY, Wanted, array_answer, digest_of, names_of, selected
from ntkpipe.pipeline.server.documents import AttributionSummary, ClassShare, Contribution
from ntkpipe.pipeline.server.labels import label_of
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import (
    ArrayFormat,
    ArrayQuestion,
    AttributionsForm,
    AttributionsQuestion,
    CoefficientsForm,
    CoefficientsQuestion,
    RowsForm,
    RowsQuestion,
    RunName,
    SolutionName,
    SummaryQuestion,
)
from ntkpipe.pipeline.server.service import Service, ServiceOf, take_memory
from ntkpipe.storage.arrays import Array
from ntkpipe.storage.solutions import SolutionRecord

router = APIRouter(prefix="/runs/{run}/solutions/{solution}", tags=["solutions"])

SAME: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "Unchanged."}, **problems(409)}

Rows = str | list[int] | list[str]


@router.get("", response_model=SolutionRecord, responses=SAME)
def record(request: Request, service: ServiceOf, run: RunName, solution: SolutionName) -> Response:
    """Tell how a solution was found and how well it solves its system."""
    opened = service.open(run, request)
    opened.run.num_targets(solution)  # there is one of that name
    return answered(
        request,
        lambda: etag_of(opened.digest, "record", solution, opened.reader.solution_version(solution)),
        lambda etag: document(opened.run.solution_record(solution), etag),
    )


@router.get("/coefficients", response_model=None, responses=ARRAY)
def coefficients(
    request: Request,
    service: ServiceOf,
    run: RunName,
    solution: SolutionName,
    question: Annotated[CoefficientsQuestion, Query()],
) -> Response:
    """Return coefficients of training samples, (R, T)."""
    return _coefficients(request, service, run, solution, question.rows, question.format)


@router.post("/coefficients", response_model=None, responses=ARRAY)
def coefficients_of_form(
    request: Request, service: ServiceOf, run: RunName, solution: SolutionName, question: CoefficientsForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _coefficients(request, service, run, solution, question.rows, question.format)


@router.get("/predictions", response_model=None, responses=ARRAY)
def predictions(
    request: Request,
    service: ServiceOf,
    run: RunName,
    solution: SolutionName,
    question: Annotated[RowsQuestion, Query()],
) -> Response:
    """Return predictions for samples of a split, (R, T)."""
    return _predictions(request, service, run, solution, question.split, question.rows, question.format)


@router.post("/predictions", response_model=None, responses=ARRAY)
def predictions_of_form(
    request: Request, service: ServiceOf, run: RunName, solution: SolutionName, question: RowsForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _predictions(request, service, run, solution, question.split, question.rows, question.format)


@router.get("/attributions", response_model=None, responses=ARRAY)
def attributions(
    request: Request,
    service: ServiceOf,
    run: RunName,
    solution: SolutionName,
    question: Annotated[AttributionsQuestion, Query()],
) -> Response:
    """Return what every training sample contributes to predictions, (R, N, T), or (R, N) of one target."""
    return _attributions(request, service, run, solution, question.rows, question)


@router.post("/attributions", response_model=None, responses=ARRAY)
def attributions_of_form(
    request: Request, service: ServiceOf, run: RunName, solution: SolutionName, question: AttributionsForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _attributions(request, service, run, solution, question.rows, question)


@router.get("/attributions/summary", response_model=AttributionSummary, responses=SAME)
def attribution_summary(
    request: Request,
    service: ServiceOf,
    run: RunName,
    solution: SolutionName,
    question: Annotated[SummaryQuestion, Query()],
) -> Response:
    """Tell which training samples speak most for and against a prediction, and what each class contributes."""
    opened = service.open(run, request)
    split = question.split or opened.run.train_split
    at = _single(selected(opened.run, split, question.sample))
    opened.run.ids(opened.run.train_split)  # there are as many as the manifest says

    def etag() -> str:
        version = opened.reader.attributions_version(solution, split, at), opened.reader.samples_version(split)
        return etag_of(opened.digest, "summary", solution, split, digest_of(at), question.target, question.k, *version)

    def make(etag: str | None) -> Response:
        take_memory(request, service, 1 << 20)
        found = opened.run.attribution_summary(solution, int(at[0]), split, target=question.target, k=question.k)
        return document(_summed_up(found, opened.run.labels(opened.run.train_split)), etag)

    return answered(request, etag, make)


@router.get("/extras/{what}", response_model=None, responses=ARRAY)
def extra(
    request: Request,
    service: ServiceOf,
    run: RunName,
    solution: SolutionName,
    what: Annotated[str, Path(description="One of the record's extras.")],
    question: Annotated[ArrayQuestion, Query()],
) -> Response:
    """Return something else that a solution's solver found, such as a path of ridges."""
    opened = service.open(run, request)
    # Small, and of a shape that only its content tells.
    found = np.atleast_1d(opened.run.solution_extra(solution, what))
    wanted = Wanted(
        found.shape,
        lambda: opened.reader.solution_version(solution),
        lambda: [str(position) for position in range(len(found))],
        lambda: found,
        which=("extra", solution, what),
    )
    return array_answer(request, service, opened, wanted, question.format)


def _coefficients(
    request: Request, service: Service, run: str, solution: str, rows: Rows, form: ArrayFormat | None
) -> Response:
    opened = service.open(run, request)
    geometry = opened.run.manifest.geometry
    split = geometry.train_split
    opened.run.solution_record(solution)
    at = selected(opened.run, split, rows)
    wanted = Wanted(
        (len(at), geometry.solution_targets[geometry.solutions.index(solution)]),
        lambda: opened.reader.solution_version(solution),
        lambda: names_of(opened.run, split, at),
        lambda: opened.run.solution(solution)[at],
        which=("coefficients", solution, digest_of(at)),
    )
    return array_answer(request, service, opened, wanted, form)


def _predictions(
    request: Request,
    service: Service,
    run: str,
    solution: str,
    split: str | None,
    rows: Rows,
    form: ArrayFormat | None,
) -> Response:
    opened = service.open(run, request)
    geometry = opened.run.manifest.geometry
    split = split or opened.run.train_split
    opened.run.solution_record(solution)
    at = selected(opened.run, split, rows)
    wanted = Wanted(
        (len(at), geometry.solution_targets[geometry.solutions.index(solution)]),
        lambda: opened.reader.solution_version(solution),
        lambda: names_of(opened.run, split, at),
        lambda: opened.run.predictions(solution, split)[at],
        which=("predictions", solution, split, digest_of(at)),
    )
    return array_answer(request, service, opened, wanted, form)


def _attributions(
    request: Request,
    service: Service,
    run: str,
    solution: str,
    rows: Rows,
    question: AttributionsQuestion | AttributionsForm,
) -> Response:
    opened = service.open(run, request)
    geometry = opened.run.manifest.geometry
    split, train = question.split or opened.run.train_split, opened.run.train_split
    opened.run.solution_record(solution)
    at = selected(opened.run, split, rows)
    num, targets = geometry.splits[train].num_samples, geometry.solution_targets[geometry.solutions.index(solution)]
    wanted = Wanted(
        (len(at), num, targets) if question.target is None else (len(at), num),
        lambda: opened.reader.attributions_version(solution, split, at),
        lambda: names_of(opened.run, split, at),
        lambda: opened.run.attributions(solution, at, split, target=question.target),
        lambda: opened.run.ids(train),
        which=("attributions", solution, split, question.target, digest_of(at)),
    )
    return array_answer(request, service, opened, wanted, question.format)


def _single(at: Positions) -> Positions:
    if len(at) != 1:
        raise ConfigError(f"a summary is of one sample; {len(at)} were asked for.")
    return at


def _summed_up(found: Summary, labels: Array | None) -> AttributionSummary:
    return AttributionSummary(
        sample=found.sample_id,
        position=found.position,
        target=found.target,
        prediction=found.prediction,
        total=found.total,
        by_class=[
            ClassShare(
                label=share.label, num_samples=share.num_samples, positive=share.positive, negative=share.negative
            )
            for share in found.by_class
        ],
        helpful=_contributions(found.helpful, labels),
        harmful=_contributions(found.harmful, labels),
    )


def _contributions(found: tuple[Neighbor, ...], labels: Array | None) -> list[Contribution]:
    return [
        Contribution(id=item.sample_id, position=item.position, label=label_of(labels, item.position), value=item.value)
        for item in found
    ]
