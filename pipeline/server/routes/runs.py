"""Which runs there are, what they are, and how far."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.configs.secrets import redacted_values
from ntkpipe.pipeline.server.answers import document, etag_of, not_modified
from ntkpipe.pipeline.server.documents import ManifestDocument, RunItem, RunList, StageCount, StatusDocument
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import Limit, RunName
from ntkpipe.pipeline.server.service import Service, ServiceOf

router = APIRouter(tags=["runs"])

STATUSES_AT_ONCE: Final = 4
"""Each lists the receipts of a run."""


@router.get("/runs", response_model=RunList, responses=problems())
def list_runs(
    service: ServiceOf,
    limit: Limit = 100,
    after: Annotated[str, Query(description="The name after which the page begins.")] = "",
) -> Response:
    """List the runs below the root by name, finished or not."""
    page, more = service.runs.page(after, limit)
    with ThreadPoolExecutor(STATUSES_AT_ONCE) as pool:
        items = list(pool.map(lambda name: _item(service, name), page))
    return document(RunList(runs=items, next=page[-1] if more else None))


@router.get(
    "/runs/{run}", response_model=ManifestDocument, responses={304: {"description": "Unchanged."}, **problems()}
)
def manifest(request: Request, service: ServiceOf, run: RunName) -> Response:
    """Tell what a run is: configuration, geometry, fingerprints, versions. Secrets of the environment are redacted."""
    opened = service.open(run, request)
    etag = etag_of(opened.digest, "manifest")
    found = not_modified(request, etag)
    if found is not None:
        return found
    stored: dict[str, Any] = json.loads(opened.manifest)
    return document(ManifestDocument(run=opened.name, manifest=redacted_values(stored)), etag)


@router.get("/runs/{run}/status", response_model=StatusDocument, responses=problems())
def status(request: Request, service: ServiceOf, run: RunName) -> Response:
    """Tell how far a run is, counted from its receipts."""
    opened = service.open(run, request)
    found = dataclasses.asdict(opened.run.status())
    told = {**found, "url": opened.name, "failures": [service.told(text) for text in found["failures"]]}
    return document(StatusDocument.model_validate(told))


def _item(service: Service, name: str) -> RunItem:
    try:
        opened = service.open(name)
        found, stored = opened.run.status(), opened.run.manifest
    except NtkPipeError as error:
        return RunItem(run=name, state="unreadable", problem=service.told(error.message))
    return RunItem(
        run=name,
        name=found.name,
        run_id=found.run_id,
        state=found.state,
        created_at=stored.created_at,
        stages=[
            StageCount(
                stage=stage.stage,
                done=stage.done,
                total=stage.total,
                set_aside=stage.set_aside,
                left_out=stage.left_out,
            )
            for stage in found.stages
        ],
        num_samples={split: shape.num_samples for split, shape in stored.geometry.splits.items()},
        kernels=list(stored.geometry.references),
    )
