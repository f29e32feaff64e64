"""What happened in a run: events, timeline, receipts and failures."""

import math
from bisect import bisect_right
from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from ntkpipe.configs.errors import NotFoundError, StorageError
from ntkpipe.configs.secrets import redacted_values
from ntkpipe.pipeline.events import read_events
from ntkpipe.pipeline.server.answers import document, etag_of, not_modified
from ntkpipe.pipeline.server.documents import (
    EventList,
    FailureItem,
    FailureList,
    ReceiptItem,
    ReceiptList,
)
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import Limit, RunName
from ntkpipe.pipeline.server.runs import Opened
from ntkpipe.pipeline.server.service import ServiceOf
from ntkpipe.pipeline.server.timeline_documents import Timeline
from ntkpipe.pipeline.server.timelines import Timelines
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Failure, Receipt
from ntkpipe.storage.stores.keys import check_name, checked_key

router = APIRouter(tags=["history"])

MAX_FAILURES: Final = 1000

MAX_NAME_BYTES: Final = 200
"""Of a part of a task's id; file systems allow little more with what is added to it."""

Stage = Annotated[str, Path(description="Such as features, kernel or solve.")]


@router.get("/runs/{run}/events", response_model=EventList, responses=problems())
def events(
    request: Request,
    service: ServiceOf,
    run: RunName,
    after: Annotated[int, Query(ge=0, le=2**53, description="How many were seen.")] = 0,
    limit: Limit = 500,
) -> Response:
    """Tell what happened, as it was logged, oldest first; what cannot be read is left out."""
    opened = service.open(run, request)
    found = islice(read_events(opened.store), after, after + limit)
    page = [_finite(redacted_values(dict(event.fields))) for event in found]
    return document(EventList(events=page, next=after + len(page)))


@router.get(
    "/runs/{run}/timeline", response_model=Timeline, responses={304: {"description": "Unchanged."}, **problems()}
)
def timeline(request: Request, service: ServiceOf, run: RunName) -> Response:
    """Tell who worked on what and when, summed up from all events as in `ntkpipe report`."""
    opened = service.open(run, request)
    # Segments of the log are written once, so that their names and sizes tell what is in them.
    etag = etag_of(opened.digest, "timeline", *opened.store.sizes(layout.EVENTS).items())
    same = not_modified(request, etag)
    if same is not None:
        return same
    return document(service.part(Timelines, Timelines).of(opened.store, etag), etag)


@router.get("/runs/{run}/failures", response_model=FailureList, responses=problems())
def failures(request: Request, service: ServiceOf, run: RunName) -> Response:
    """List failed attempts, the latest thousand; those that cannot be read are left out."""
    store, found = service.open(run, request).store, []
    for key, data in store.get_many(store.names(layout.FAILED)):
        with suppress(StorageError):
            if data is not None:
                found.append(Failure.parse(data, key))
    found.sort(key=lambda failure: (failure.epoch, failure.failed_at))
    fields = set(FailureItem.model_fields)
    items = [failure.model_dump(include=fields) for failure in found[-MAX_FAILURES:]]
    told = [item | {"message": service.told(item["message"])} for item in items]
    return document(FailureList(failures=[FailureItem.model_validate(item) for item in told]))


@router.get("/runs/{run}/receipts/{stage}", response_model=ReceiptList, responses=problems())
def receipts(
    request: Request,
    service: ServiceOf,
    run: RunName,
    stage: Stage,
    after: Annotated[str, Query(description="The task after which the page begins.")] = "",
    limit: Limit = 100,
) -> Response:
    """List finished tasks of a stage by their ids."""
    ledger = _ledger(service.open(run, request), stage)
    tasks = sorted(ledger.committed(stage))
    start = bisect_right(tasks, after) if after else 0
    page = tasks[start : start + limit]
    items = [_receipt_item(ledger.receipt(stage, task)) for task in page]
    return document(ReceiptList(receipts=items, next=page[-1] if start + limit < len(tasks) else None))


@router.get(
    "/runs/{run}/receipts/{stage}/{task:path}",
    response_model=dict[str, Any],
    responses={304: {"description": "Unchanged."}, **problems()},
)
def receipt(
    request: Request,
    service: ServiceOf,
    run: RunName,
    stage: Stage,
    task: Annotated[str, Path(description="The id of a task; it may have slashes.")],
) -> Response:
    """Return a receipt: what a task has written, with checksums, when, and by whom."""
    opened = service.open(run, request)
    _require_name(f"{stage}/{task}", f"{stage} task {task}")
    found = _ledger(opened, stage).receipt(stage, task)
    etag = etag_of(opened.digest, found.seal, found.model_dump_json())
    return not_modified(request, etag) or document(found, etag)


def _ledger(opened: Opened, stage: str) -> Ledger:
    """Return a ledger that has listed nothing yet, of a run that has a stage."""
    try:
        check_name(stage)
    except StorageError:
        stages: tuple[str, ...] = ()
    else:
        ledger = Ledger(opened.store)
        stages = ledger.stages()
        if stage in stages or stage in {found.stage for found in opened.run.status().stages}:
            return ledger
    raise NotFoundError(f"{opened.store.url} has no stage {stage[:100]!r} with receipts.")


def _require_name(key: str, what: str) -> None:
    try:
        checked_key(key)
        possible = all(len(part.encode()) <= MAX_NAME_BYTES for part in key.split("/"))
    except (StorageError, UnicodeEncodeError):
        possible = False
    if not possible:
        raise NotFoundError(f"there is no {what[:200]!r}.")


def _receipt_item(found: Receipt) -> ReceiptItem:
    return ReceiptItem(
        task=found.task,
        seconds=found.seconds,
        worker=found.worker,
        epoch=found.epoch,
        attempt=found.attempt,
        committed_at=found.committed_at,
        num_bytes=found.num_bytes,
        chunks=len(found.chunks),
    )


def _finite(value: Any) -> Any:
    """Return JSON values in which what is not finite is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
