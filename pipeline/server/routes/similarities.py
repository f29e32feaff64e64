"""What is made of kernel matrices for single samples and for a whole split: neighbours and spectra."""

from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import ConfigError, TooLargeError
from ntkpipe.pipeline.pictures.workshop import Building
from ntkpipe.pipeline.query.names import MatrixName, Nearest, Positions
from ntkpipe.pipeline.server.answers import answered, document, etag_of
from ntkpipe.pipeline.server.arrays import digest_of, selected
from ntkpipe.pipeline.server.background import BUILDING, building, gallery_of, would_ask_again
from ntkpipe.pipeline.server.documents import NeighborItem, NeighborList, SampleNeighbors, SpectrumDocument
from ntkpipe.pipeline.server.labels import label_of
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import (
    KernelName,
    NeighborForm,
    NeighborOptions,
    NeighborQuestion,
    RunName,
    SpectrumForm,
    SpectrumQuestion,
    parts,
)
from ntkpipe.pipeline.server.runs import Opened
from ntkpipe.pipeline.server.service import Service, ServiceOf, take_memory

router = APIRouter(prefix="/runs/{run}/kernels/{kernel}", tags=["kernels"])

NEIGHBOR_BYTES: Final = 1000
"""Of memory for each neighbour in an answer."""

SAME: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "Unchanged."}, **problems(409)}


@router.get("/neighbors", response_model=NeighborList, responses=SAME)
def neighbors(
    request: Request,
    service: ServiceOf,
    run: RunName,
    kernel: KernelName,
    question: Annotated[NeighborQuestion, Query()],
) -> Response:
    """Return the training samples with the largest kernel values to some samples, or the smallest; exact."""
    return _neighbors(request, service, run, kernel, question.rows, question)


@router.post("/neighbors", response_model=NeighborList, responses=SAME)
def neighbors_of_form(
    request: Request, service: ServiceOf, run: RunName, kernel: KernelName, question: NeighborForm
) -> Response:
    """Return the same for selections that are too long for a query string."""
    return _neighbors(request, service, run, kernel, question.rows, question)


@router.get("/spectrum", response_model=SpectrumDocument, responses=SAME | BUILDING)
def spectrum(
    request: Request,
    service: ServiceOf,
    run: RunName,
    kernel: KernelName,
    question: Annotated[SpectrumQuestion, Query()],
) -> Response:
    """Return eigenvalues of the training matrix, and which share of the labels its eigenvectors explain.

    With ``Prefer: respond-async`` a client is not kept waiting, but told to ask again.
    """
    return _spectrum(request, service, run, kernel, question)


@router.post("/spectrum", response_model=SpectrumDocument, responses=SAME | BUILDING)
def spectrum_of_form(
    request: Request, service: ServiceOf, run: RunName, kernel: KernelName, question: SpectrumForm
) -> Response:
    """Return the same for lists of layers that are too long for a query string."""
    return _spectrum(request, service, run, kernel, question)


def _spectrum(request: Request, service: Service, run: str, kernel: str, question: SpectrumQuestion) -> Response:
    opened = service.open(run, request)
    name = opened.run.kernel(kernel, layers=parts(question.layers), transforms=parts(question.transforms)).name
    num_samples, width = len(opened.run.ids(name.rows)), opened.run.shape_of(kernel)[0].width

    def etag() -> str:
        every = np.arange(num_samples * width)
        version = opened.reader.version(name, every, every), opened.reader.samples_version(name.rows)
        return etag_of(opened.digest, "spectrum", name, question.max_samples, *version)

    def make(etag: str | None) -> Response:
        num = min(question.max_samples, num_samples)
        take_memory(request, service, 32 * num * num)
        gallery, patient = gallery_of(service), not would_ask_again(request)
        found = gallery.spectrum(opened.run, name, question.max_samples, str(etag), patient=patient)
        if isinstance(found, Building):
            return building(found)
        energy = found.label_energy
        return document(
            SpectrumDocument(
                eigenvalues=found.eigenvalues.tolist(),
                label_energy=None if energy is None else energy.tolist(),
                num_samples=found.num_samples,
            ),
            etag,
        )

    return answered(request, etag, make)


def _neighbors(
    request: Request,
    service: Service,
    run: str,
    kernel: str,
    rows: str | list[int] | list[str],
    options: NeighborOptions,
) -> Response:
    opened = service.open(run, request)
    query = opened.run.kernel(kernel, options.split, layers=parts(options.layers), transforms=parts(options.transforms))
    if query.width > 1:
        raise ConfigError("rows of a kernel of (sample, output) pairs are no samples; ask another for neighbors.")
    name = query.name
    at, num_columns = selected(opened.run, name.rows, rows), len(opened.run.ids(name.columns))
    k, limit = min(options.k, num_columns), service.settings.max_json_cells // 8
    if len(at) * k > limit:
        raise TooLargeError(
            f"that would be {len(at) * k:,} neighbours; one answer has at most {limit:,}.",
            limit=limit,
            asked=len(at) * k,
        )
    which = (name, digest_of(at), k, options.opposed, options.label)

    def etag() -> str:
        every = np.arange(num_columns)
        version = opened.reader.version(name, at, every), opened.reader.samples_version(name.columns)
        return etag_of(opened.digest, "neighbors", *which, *version)

    def make(etag: str | None) -> Response:
        take_memory(request, service, len(at) * k * NEIGHBOR_BYTES + (64 << 20))
        found = opened.reader.nearest(name, at, k, opposed=options.opposed, label=options.label)
        service.metrics.read(len(at) * num_columns)
        return document(_listed(opened, name, at, found), etag)

    return answered(request, etag, make)


def _listed(opened: Opened, name: MatrixName, at: Positions, found: Nearest) -> NeighborList:
    ids, samples = opened.run.ids(name.columns), opened.run.ids(name.rows)
    labels = opened.run.labels(name.columns)
    return NeighborList(
        neighbors=[
            SampleNeighbors(
                sample=samples[sample],
                position=int(sample),
                neighbors=[
                    NeighborItem(
                        id=ids[position], position=int(position), value=float(value), label=label_of(labels, position)
                    )
                    for position, value in zip(positions, values, strict=True)
                    if position >= 0
                ],
            )
            for sample, positions, values in zip(at, found.positions, found.values, strict=True)
        ]
    )
