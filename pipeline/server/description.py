"""The service's description of itself after OpenAPI."""

import json
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from ntkpipe.pipeline.server.answers import JSON, caching, etag_of, not_modified
from ntkpipe.pipeline.server.problems import Problem

TITLE: Final = "ntkpipe"
VERSION: Final = "1"
"""Of the paths and documents."""

ABOUT: Final = (
    "Stored runs of ntkpipe: kernels, features, solutions and what happened. Nothing is ever written. Arrays come as npy, "
    "Arrow or JSON. Answers that follow from committed data have strong ETags, the same from every process that serves "
    "the run; what changes is not to be stored. Errors are problem documents (RFC 9457) with a stable `kind`. "
    "A request with the header `ntkpipe-run`, a run id, is refused with 409 (`run-mismatch`) if another run goes by the name."
)

_TEMPLATE: Final = "#/components/schemas/{model}"


def describe(app: FastAPI, place: str) -> None:
    """Let an application describe itself, its problems and its token, at a path of its own."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, description=ABOUT, routes=app.routes)
            components = found.setdefault("components", {})
            schema = Problem.model_json_schema(ref_template=_TEMPLATE)
            components.setdefault("schemas", {})["Problem"] = schema
            components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            for path, operations in found["paths"].items():
                for operation in operations.values():
                    operation["security"] = [] if path == "/healthz" else [{"token": []}, {}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get(place, include_in_schema=False)
    def description(request: Request) -> Response:
        text = json.dumps(app.openapi())
        etag = etag_of(text)
        return not_modified(request, etag) or Response(text, media_type=JSON, headers=caching(etag))
