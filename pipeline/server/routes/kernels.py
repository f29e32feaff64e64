"""Kernel matrices, their standard errors, features and diagonals."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import ConfigError
from ntkpipe.pipeline.query.estimates import work_bytes
from ntkpipe.pipeline.query.names import MatrixName
from ntkpipe.pipeline.query.selection import rows_of_samples
from ntkpipe.pipeline.server.arrays import ARRAY, Wanted, array_answer, digest_of, names_of, selected
from ntkpipe.pipeline.server.questions import (
    ArrayQuestion,
    DiagonalQuestion,
    KernelName,
    MatrixForm,
    MatrixOptions,
    MatrixQuestion,
    RowsForm,
    RowsQuestion,
    RunName,
)
from ntkpipe.pipeline.server.service import Service, ServiceOf

router = APIRouter(prefix="/runs/{run}/kernels/{kernel}", tags=["kernels"])

Rows = str | list[int] | list[str]


@router.get("", response_model=None, responses=ARRAY)
def entries(
    request: Request,
    service: ServiceOf,
    run: RunName,
    kernel: KernelName,
    question: Annotated[MatrixQuestion, Query()],
) -> Response:
    """Return entries of a kernel at all pairs of rows and columns, (R, C); with transforms as they are asked for."""
    return _entries(request, service, run, kernel, question.rows, question.cols, question)


@router.post("", response_model=None, responses=ARRAY)
def entries_of_form(
    request: Request, service: ServiceOf, run: RunName, kernel: KernelName, question: MatrixForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _entries(request, service, run, kernel, question.rows, question.cols, question)


@router.get("/errors", response_model=None, responses=ARRAY)
def errors(
    request: Request,
    service: ServiceOf,
    run: RunName,
    kernel: KernelName,
    question: Annotated[MatrixQuestion, Query()],
) -> Response:
    """Return standard errors of a kernel's entries, (R, C) float64: 0 for exact kernels; layers and transforms have none."""
    return _errors(request, service, run, kernel, question.rows, question.cols, question)


@router.post("/errors", response_model=None, responses=ARRAY)
def errors_of_form(
    request: Request, service: ServiceOf, run: RunName, kernel: KernelName, question: MatrixForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _errors(request, service, run, kernel, question.rows, question.cols, question)


@router.get("/features", response_model=None, responses=ARRAY)
def features(
    request: Request, service: ServiceOf, run: RunName, kernel: KernelName, question: Annotated[RowsQuestion, Query()]
) -> Response:
    """Return stored features of samples, (R, K), or (G, R, K) of a layerwise kernel."""
    return _features(request, service, run, kernel, question.split, question.rows, question)


@router.post("/features", response_model=None, responses=ARRAY)
def features_of_form(
    request: Request, service: ServiceOf, run: RunName, kernel: KernelName, question: RowsForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _features(request, service, run, kernel, question.split, question.rows, question)


@router.get("/diagonal", response_model=None, responses=ARRAY)
def diagonal(
    request: Request,
    service: ServiceOf,
    run: RunName,
    kernel: KernelName,
    question: Annotated[DiagonalQuestion, Query()],
) -> Response:
    """Return K(x, x) of a split before any normalisation, (N,); (N, C) for a kernel of (sample, output) pairs."""
    opened = service.open(run, request)
    split = question.split or opened.run.train_split
    ids = opened.run.ids(split)
    shape, _ = opened.run.shape_of(kernel, of_samples=True)
    wanted = Wanted(
        (len(ids),) if shape.width == 1 else (len(ids), shape.width),
        lambda: opened.reader.diagonal_version(kernel, split),
        lambda: ids,
        lambda: opened.run.diagonal(kernel, split),
        which=("diagonal", kernel, split),
    )
    return array_answer(request, service, opened, wanted, question.format)


def _entries(
    request: Request, service: Service, run: str, kernel: str, rows: Rows, cols: Rows, options: MatrixOptions
) -> Response:
    opened = service.open(run, request)
    query = opened.run.kernel(kernel, **options.matrix)
    name, width = query.name, query.width
    at, columns = selected(opened.run, name.rows, rows), selected(opened.run, name.columns, cols)
    wanted = Wanted(
        (len(at) * width, len(columns) * width),
        lambda: opened.reader.version(name, rows_of_samples(at, width), rows_of_samples(columns, width)),
        lambda: names_of(opened.run, name.rows, at, width),
        lambda: query.read(at, columns, missing=options.missing),
        lambda: names_of(opened.run, name.columns, columns, width),
        which=("kernel", name, options.missing, digest_of(at), digest_of(columns)),
    )
    return array_answer(request, service, opened, wanted, options.format)


def _errors(
    request: Request, service: Service, run: str, kernel: str, rows: Rows, cols: Rows, options: MatrixOptions
) -> Response:
    if options.layers or options.transforms or options.missing != "raise":
        raise ConfigError("standard errors are those of the kernel itself: leave layers, transforms and missing out.")
    opened = service.open(run, request)
    query = opened.run.standard_errors(kernel, options.row_split, options.column_split)
    row_split, column_split = (split or opened.run.train_split for split in (options.row_split, options.column_split))
    at, columns = selected(opened.run, row_split, rows), selected(opened.run, column_split, cols)
    name, width = MatrixName(kernel, row_split, column_split), query.width
    wanted = Wanted(
        (len(at) * width, len(columns) * width),
        lambda: opened.reader.errors_version(name, at, columns),
        lambda: names_of(opened.run, row_split, at, width),
        lambda: query[at, columns],
        lambda: names_of(opened.run, column_split, columns, width),
        which=("errors", name, digest_of(at), digest_of(columns)),
        work_bytes=work_bytes(opened.reader.manifest.geometry, kernel, len(at), len(columns)),
    )
    return array_answer(request, service, opened, wanted, options.format)


def _features(
    request: Request,
    service: Service,
    run: str,
    kernel: str,
    split: str | None,
    rows: Rows,
    question: ArrayQuestion,
) -> Response:
    opened = service.open(run, request)
    split = split or opened.run.train_split
    found = opened.run.features[kernel, split]
    at = selected(opened.run, split, rows)
    num_groups = len(opened.run.shape_of(kernel, of_samples=True)[0].groups)
    per_sample = found.num_values
    wanted = Wanted(
        (num_groups, len(at), per_sample // num_groups) if num_groups else (len(at), per_sample),
        lambda: opened.reader.features_version(kernel, split, at),
        lambda: names_of(opened.run, split, at),
        lambda: found[at],
        which=("features", kernel, split, digest_of(at)),
    )
    return array_answer(request, service, opened, wanted, question.format)
