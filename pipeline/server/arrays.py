"""From positions and values to the answer of a question for an array."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request
from starlette.responses import Response

from ntkpipe.configs.errors import TooLargeError
from ntkpipe.pipeline.query.formats import MEDIA_TYPES, Answer, encode
from ntkpipe.pipeline.query.names import Positions
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.selection import parse_selection
from ntkpipe.pipeline.query.views import names_of_rows
from ntkpipe.pipeline.server.answers import answered, caching, etag_of
from ntkpipe.pipeline.server.documents import ArrayDocument
from ntkpipe.pipeline.server.problems import problems
from ntkpipe.pipeline.server.questions import ArrayFormat
from ntkpipe.pipeline.server.runs import Opened
from ntkpipe.pipeline.server.service import Service, take_memory
from ntkpipe.storage.arrays import Array

OVERHEAD: Final[dict[ArrayFormat, int]] = {"npy": 16, "arrow": 32, "json": 120}
"""Bytes that are held per value while an answer is made: values, their copy in the format, and what is in between."""

FORMATS: Final[tuple[ArrayFormat, ...]] = ("json", "npy", "arrow")

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}

ARRAY: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The array.",
        "model": ArrayDocument,
        "content": {MEDIA_TYPES["npy"]: _BINARY, MEDIA_TYPES["arrow"]: _BINARY},
    },
    304: {"description": "It is what the client has."},
    **problems(409),
}
"""Describes routes that answer with an array."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """An array that was asked for, before it is read."""

    shape: tuple[int, ...]
    version: Callable[[], str]
    """Changes whenever its values do. It is asked for before they are read, and after."""
    row_ids: Callable[[], list[str]]
    read: Callable[[], Array]
    column_ids: Callable[[], list[str] | None] = lambda: None
    which: tuple[object, ...] = ()
    """What tells it from others of the same version, such as positions."""
    work_bytes: int = 0
    """That are held while its values are made, beside what any array takes."""


def array_answer(
    request: Request, service: Service, opened: Opened, wanted: Wanted, form: ArrayFormat | None
) -> Response:
    """Return an array in the format that was asked for, or say that it has not changed.

    Raises:
        TooLargeError: It has more values than the service answers with.
        Refusal: There is not enough memory for it now.
    """
    chosen = form or accepted(request.headers.get("accept", ""))
    num_cells = check_cells(service, wanted.shape, chosen)

    def make(etag: str | None) -> Response:
        take_memory(request, service, num_cells * OVERHEAD[chosen] + wanted.work_bytes + 4096)
        values = wanted.read()
        answer = Answer(values, [], None) if chosen == "npy" else Answer(values, wanted.row_ids(), wanted.column_ids())
        content = encode(answer, chosen)
        service.metrics.read(num_cells)
        return Response(content, media_type=MEDIA_TYPES[chosen], headers=caching(etag))

    return answered(request, lambda: etag_of(opened.digest, wanted.version(), chosen, *wanted.which), make)


def accepted(header: str) -> ArrayFormat:
    """Return the format that an Accept header likes best, the first of those it likes alike; json if it names none."""
    best, weight = FORMATS[0], 0.0
    for part in header.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        liking = next((_weight(text) for text in parameters if text.startswith("q=")), 1.0)
        for form in FORMATS:
            if media_type == MEDIA_TYPES[form] and liking > weight:
                best, weight = form, liking
    return best


def _weight(parameter: str) -> float:
    """Return the weight of a media range; what is no number weighs nothing."""
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


def check_cells(service: Service, shape: Sequence[int], form: ArrayFormat) -> int:
    """Return how many values an array of a shape has; an axis without any counts as one, since the others have names.

    Raises:
        TooLargeError: They are too many for one answer.
    """
    num_cells = math.prod(max(1, size) for size in shape)
    limit = service.settings.max_cells
    advice = "Ask for fewer rows or columns at a time"
    if form == "json" and service.settings.max_json_cells < limit:
        limit, advice = service.settings.max_json_cells, f"{advice}, or for format=npy"
    if num_cells > limit:
        raise TooLargeError(
            f"that would be {num_cells:,} values; one answer has at most {limit:,}. {advice}.",
            limit=limit,
            asked=num_cells,
        )
    return num_cells


def selected(run: Run, split: str, selection: str | list[int] | list[str]) -> Positions:
    """Return the positions in a split that a question selects.

    Raises:
        ConfigError: A text selects nothing.
        NotFoundError: A position, sample or split does not exist.
    """
    return run.positions(parse_selection(selection) if isinstance(selection, str) else selection, split)


def names_of(run: Run, split: str, positions: Positions, width: int = 1) -> list[str]:
    """Return the ids of some samples, ``NAME/OUTPUT`` for each output of a kernel of (sample, output) pairs."""
    ids = run.ids(split)
    return names_of_rows([ids[position] for position in positions], width)


def digest_of(positions: Positions) -> bytes:
    """Return what tells positions from others, for an ETag."""
    return positions.tobytes()
