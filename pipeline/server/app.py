"""The application: routes, errors, description, and the gate around them."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, final

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from ntkpipe.configs.errors import ChunkNotReadyError, NtkPipeError, TooLargeError
from ntkpipe.pipeline.server.description import TITLE, VERSION, describe
from ntkpipe.pipeline.server.gate import Gate, defect
from ntkpipe.pipeline.server.problems import Refusal, refusal_of
from ntkpipe.pipeline.server.routes import (
    analyses,
    explorer,
    history,
    kernels,
    pictures,
    runs,
    similarities,
    solutions,
    splits,
)
from ntkpipe.pipeline.server.service import Service
from ntkpipe.pipeline.server.settings import ServerSettings

PREFIX = "/v1"

DESCRIPTION = f"{PREFIX}/openapi.json"

VERSIONED = (runs, history, splits, kernels, similarities, solutions, analyses, pictures)
"""What is below it."""

MAX_BLOCKS = 100
"""Of those that are missing, so many are named."""

MAX_DETAIL = 4000
"""Characters of a message, which may repeat what was asked."""


@final
class Application:
    """The service as an ASGI application.

    Attributes:
        service: What its routes share.
        routes: The application inside the gate.
    """

    def __init__(self, service: Service, routes: FastAPI) -> None:
        self.service = service
        self.routes = routes
        self._gate = Gate(routes, service, methods_of)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or begin or end the service."""
        await self._gate(scope, receive, send)


def create_app(settings: ServerSettings) -> Application:
    """Return a service over the runs below a root. Nothing is written, and several of them give the same answers.

    Raises:
        ConfigError: The settings or the root are not acceptable.
        StorageError: The root cannot be read.
    """
    service = Service(settings)
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    for module in VERSIONED:
        app.include_router(module.router, prefix=PREFIX)
    app.include_router(explorer.router)
    explorer.add_explorer(app)
    _handle_errors(app, service)
    describe(app, DESCRIPTION)
    return Application(service, app)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    anyio.to_thread.current_default_thread_limiter().total_tokens = service.settings.threads
    yield
    service.close()


def methods_of(path: str) -> set[str]:
    """Return the methods that a path knows; empty for an unknown one."""
    found = {method for pattern, methods in _patterns() if pattern.match(path) for method in methods}
    if path == "/" or path.startswith("/static/") or path == DESCRIPTION:
        found.add("GET")
    return found | ({"HEAD"} if "GET" in found else set())


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], frozenset[str]], ...]:
    placed = [(PREFIX, route) for module in VERSIONED for route in module.router.routes]
    placed += [("", route) for route in explorer.router.routes]
    return tuple(
        (compile_path(f"{prefix}{route.path}")[0], frozenset(route.methods or ()))
        for prefix, route in placed
        if isinstance(route, APIRoute)
    )


def _handle_errors(app: FastAPI, service: Service) -> None:
    async def told(_: Request, error: Exception) -> Response:
        assert isinstance(error, NtkPipeError), "it is registered for these"
        more: dict[str, Any] = {}
        if isinstance(error, ChunkNotReadyError) and error.tasks:
            more["blocks"] = list(error.tasks[:MAX_BLOCKS])
        if isinstance(error, TooLargeError):
            more |= {"limit": error.limit, "asked": error.asked}
        return refusal_of(error, service.told(error.message)[:MAX_DETAIL], **more).response()

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal), "it is registered for these"
        return error.response()

    async def not_understood(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError), "it is registered for these"
        return Refusal(422, "config", _findings(error)).response()

    async def not_routed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "it is registered for these"
        if error.status_code == 405:
            allow = ", ".join(sorted({*methods_of(request.url.path), "OPTIONS"}))
            found = Refusal(405, "config", f"{request.method[:20]} is not known here; {allow} are.").response()
            found.headers["allow"] = allow
            return found
        if error.status_code == 404:
            return Refusal(404, "not-found", "there is nothing at this path. See /v1/openapi.json.").response()
        return Refusal(422, "config", str(error.detail)).response()

    async def failed(request: Request, _: Exception) -> Response:
        # The gate logs it.
        return defect(request.scope["state"]["request_id"]).response()

    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(NtkPipeError, told)
    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, not_understood)
    app.add_exception_handler(HTTPException, not_routed)


def _findings(error: RequestValidationError) -> str:
    """Return what is wrong with a question, without repeating what may be long."""
    texts = []
    for finding in error.errors()[:5]:
        place = ".".join(str(part)[:60] for part in finding["loc"][1:]) or "the question"
        texts.append(f"{place}: {finding['msg'].removeprefix('Value error, ')}")
    return f"{'; '.join(texts)}. See /v1/openapi.json for what can be asked."
