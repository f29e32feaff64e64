"""What is made of kernel matrices for single samples and for a whole split: neighbours and spectra."""

from typing import Annotated, Any, Final

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import ConfigError, TooLargeError
from ntkpipe.pipeline.query.names import MatrixName, Nearest, Positions
from ntkpipe.pipeline.server.answers import document, etag_of, not_modified
from ntkpipe.pipeline.server.arrays import digest_of, parts, selected
from ntkpipe.pipeline.server.documents import NeighborItem, NeighborList, SampleNeighbors, SpectrumDocument
from ntkpipe.pipeline.server.labels import label_of
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import (
    KernelName,
    NeighborForm,
    NeighborOptions,
    NeighborQuestion,
    RunName,
    SpectrumQuestion,
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


@router.get("/spectrum", response_model=SpectrumDocument, responses=SAME)
def spectrum(
    request: Request,
    service: ServiceOf,
    run: RunName,
    kernel: KernelName,
    question: Annotated[SpectrumQuestion, Query()],
) -> Response:
    """Return eigenvalues of the training matrix, and which share of the labels its eigenvectors explain."""
    opened = service.open(run)
    name = opened.run.kernel(kernel, layers=parts(question.layers), transforms=parts(question.transforms)).name
    num = min(question.max_samples, opened.run.manifest.geometry.splits[name.rows].num_samples)
    every = np.arange(opened.run.manifest.geometry.splits[name.rows].num_samples * opened.run.shape_of(kernel)[0].width)
    version = opened.reader.version(name, every, every), opened.reader.samples_version(name.rows)
    etag = etag_of(opened.digest, "spectrum", name, question.max_samples, *version)
    same = not_modified(request, etag)
    if same is not None:
        return same
    take_memory(request, service, 32 * num * num)
    found = opened.reader.spectrum(name, question.max_samples)
    energy = found.label_energy
    return document(
        SpectrumDocument(
            eigenvalues=found.eigenvalues.tolist(),
            label_energy=None if energy is None else energy.tolist(),
            num_samples=found.num_samples,
        ),
        etag,
    )


def _neighbors(
    request: Request,
    service: Service,
    run: str,
    kernel: str,
    rows: str | list[int] | list[str],
    options: NeighborOptions,
) -> Response:
    opened = service.open(run)
    query = opened.run.kernel(kernel, options.split, layers=parts(options.layers), transforms=parts(options.transforms))
    if query.width > 1:
        raise ConfigError("rows of a kernel of (sample, output) pairs are no samples; ask another for neighbors.")
    name = query.name
    at = selected(opened.run, name.rows, rows)
    limit = service.settings.max_json_cells // 8
    if len(at) * options.k > limit:
        raise TooLargeError(
            f"that would be {len(at) * options.k:,} neighbours; one answer has at most {limit:,}.",
            limit=limit,
            asked=len(at) * options.k,
        )
    every = np.arange(query.shape[1])
    version = opened.reader.version(name, at, every), opened.reader.samples_version(name.columns)
    etag = etag_of(opened.digest, "neighbors", name, digest_of(at), options.k, options.opposed, options.label, *version)
    same = not_modified(request, etag)
    if same is not None:
        return same
    take_memory(request, service, len(at) * options.k * NEIGHBOR_BYTES + (64 << 20))
    found = opened.reader.nearest(name, at, options.k, opposed=options.opposed, label=options.label)
    service.metrics.read(len(at) * query.shape[1])
    return document(_listed(opened, name, at, found), etag)


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
