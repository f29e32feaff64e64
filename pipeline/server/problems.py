"""Errors as answers: problem documents after RFC 9457, which programs can read as well as people."""

from http import HTTPStatus
from typing import Any, Final, final

from pydantic import BaseModel, Field
from starlette.responses import Response

from ntkpipe.configs.errors import NtkPipeError

MEDIA_TYPE: Final = "application/problem+json"

RETRY_SECONDS: Final = 1
"""After which it is worth asking a busy service again."""

STATUS: Final = {
    "not-found": 404,
    "chunk-not-ready": 409,
    "run-mismatch": 409,
    "too-large": 413,
    "config": 422,
    "plan": 422,
    "numerical": 422,
    "corrupt-chunk": 500,
    "storage": 503,
}
"""By the kind of an error; others are defects."""

ALWAYS: Final = (401, 403, 404, 405, 408, 413, 421, 422, 431, 500, 503)
"""Statuses that every question may get."""

MEANING: Final = {
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site.",
    404: "There is no such run, name or sample.",
    405: "The method is not known here.",
    408: "The request did not arrive in time.",
    409: "Something that is needed is not committed yet; `blocks` names the tasks.",
    413: "The answer, or the request, would be larger than `limit`.",
    421: "The service may not be asked under this host name.",
    422: "The request cannot be understood, or is not possible.",
    431: "The head of the request is too large.",
    500: "What is stored is damaged, or the service has a defect.",
    503: "The service is busy, or its storage fails; try again.",
}


class Problem(BaseModel):
    """Why a request has no answer."""

    type: str = Field("about:blank", description="Always about:blank: status and kind tell which problem it is.")
    title: str = Field(description="Of the status.")
    status: int = Field(description="The HTTP status.", ge=400, le=599)
    kind: str = Field(description="Stable name of the error, such as not-found or chunk-not-ready.")
    detail: str = Field(description="What was found, what was expected, and what to do next.")
    blocks: list[str] | None = Field(None, description="Tasks that are not committed yet, the first hundred.")
    limit: int | None = Field(None, description="The largest amount that is allowed.")
    asked: int | None = Field(None, description="The amount that was asked for.")
    request: str | None = Field(None, description="Of a defect: the id under which the service has logged it.")


@final
class Refusal(Exception):
    """Ends a request with a problem."""

    def __init__(self, status: int, kind: str, detail: str, *, retry: bool = False, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.retry = retry
        self.problem = Problem(title=title(status), status=status, kind=kind, detail=detail, **more)

    @property
    def headers(self) -> dict[str, str]:
        """Beside those of every answer."""
        found = {"cache-control": "no-store"}
        if self.retry:
            found["retry-after"] = str(RETRY_SECONDS)
        if self.status == 401:
            found["www-authenticate"] = 'Bearer realm="ntkpipe"'
        return found

    @property
    def body(self) -> bytes:
        """The document."""
        return self.problem.model_dump_json(exclude_none=True).encode()

    def response(self) -> Response:
        """Return the answer."""
        return Response(self.body, self.status, self.headers, MEDIA_TYPE)


def refusal_of(error: NtkPipeError, detail: str, **more: Any) -> Refusal:
    """Return the answer to a request that an error has ended; ``detail`` is its message as it may be told."""
    status = STATUS.get(error.kind, 500)
    return Refusal(status, error.kind, detail, retry=status == 503, **more)


def title(status: int) -> str:
    """Return the phrase of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of a route's problems: those that every question may have, and others."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": MEANING[status], "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in sorted({*ALWAYS, *statuses})
    }
