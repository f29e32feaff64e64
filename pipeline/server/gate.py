"""What every request passes before and after its route: checks, limits, deadlines, headers, counts and a line in the log."""

import asyncio
import json
import logging
import secrets
import time
import traceback
from collections.abc import Callable
from typing import Any, Final, cast, final
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ntkpipe.configs.secrets import redacted
from ntkpipe.pipeline.server.exchange import Exchange
from ntkpipe.pipeline.server.problems import Refusal
from ntkpipe.pipeline.server.security import Guard
from ntkpipe.pipeline.server.service import Service

NO_ROUTE: Final = "none"
UNLIMITED: Final = frozenset({"/healthz"})
"""Answered however busy the service is."""

_log = logging.getLogger("ntkpipe.serve")
_access = logging.getLogger("ntkpipe.access")


@final
class Gate:
    """Surrounds the application.

    Args:
        app: Answers.
        service: Holds settings, limits and counts.
        methods_of: Returns the methods that a path knows.
    """

    def __init__(self, app: ASGIApp, service: Service, methods_of: Callable[[str], set[str]]) -> None:
        self._app = app
        self._service = service
        self._methods_of = methods_of
        self._guard = Guard(service.settings)
        # Routes that did not answer in time; their threads cannot be stopped, and count until they end.
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass on the start and the end of the service."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(8)
        exchange = Exchange(scope["method"] == "HEAD", send, self._service.settings.write_seconds)
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else dict(scope)
        try:
            await self._admitted(inner, receive, exchange)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except TimeoutError:
            exchange.cut = True  # the client took too long; the connection is closed for it
        except Exception as error:  # noqa: BLE001 - whatever it is, the client is told no more than an id
            _log_defect(state["request_id"], error)
            await exchange.refuse(defect(state["request_id"]))
        self._note(scope, inner, exchange, time.perf_counter() - start)

    async def _admitted(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        self._guard.check(cast(dict[str, Any], scope))
        _check_parameters(scope["query_string"])
        if scope["method"] == "OPTIONS":
            await self._options(scope, exchange)
            return
        if scope["path"] in UNLIMITED:
            await self._app(scope, receive, exchange.send)
            return
        self._service.admission.enter()
        task: asyncio.Task[None] | None = None
        try:
            body = await self._body(scope, receive)
            task = asyncio.create_task(self._run(scope, body, receive, exchange))
        finally:
            if task is None:
                self._service.admission.leave()
        await self._in_time(task, exchange)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, exchange: Exchange) -> None:
        """Let the application answer, and give back what it has taken."""
        parts = [body]

        async def replayed() -> Message:
            if parts:
                return {"type": "http.request", "body": parts.pop(), "more_body": False}
            return await receive()

        try:
            await self._app(scope, replayed, exchange.send)
        finally:
            self._service.admission.leave(scope["state"].get("taken_bytes", 0))

    async def _in_time(self, task: "asyncio.Task[None]", exchange: Exchange) -> None:
        seconds = self._service.settings.answer_seconds
        try:
            done, _ = await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if done or exchange.started:
            await task
            return
        exchange.closed = True
        self._late.add(task)
        task.add_done_callback(self._forget)
        # It is not worth asking again at once: what took too long is still under way.
        raise Refusal(
            503,
            "too-slow",
            f"no answer was ready after {seconds:g} s. Ask for less at a time.",
        )

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._late.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.warning("a request that was too slow has ended with %s", type(task.exception()).__name__)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Return the content of a request, all of it, within limits of time and size."""
        if scope["method"] != "POST":
            return b""
        largest = self._service.settings.max_body_bytes
        told = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        size, parts, more = int(told) if told.isdigit() else 0, [], True
        try:
            async with asyncio.timeout(self._service.settings.read_seconds):
                while more and size <= largest:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise TimeoutError
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
                    size = max(size, sum(map(len, parts)))
        except TimeoutError:
            raise Refusal(408, "too-slow", "the content of the request did not arrive in time.") from None
        if size > largest:
            raise Refusal(
                413,
                "too-large",
                f"the request has {size:,} bytes of content or more; at most {largest:,} are read.",
                limit=largest,
                asked=size,
            )
        return b"".join(parts)

    async def _options(self, scope: Scope, exchange: Exchange) -> None:
        methods = self._methods_of(scope["path"])
        if not methods:
            raise Refusal(404, "not-found", "there is nothing at this path.")
        allow = ", ".join(sorted({*methods, "OPTIONS"})).encode()
        await exchange.send({"type": "http.response.start", "status": 204, "headers": [(b"allow", allow)]})
        await exchange.send({"type": "http.response.body", "body": b""})

    def _note(self, scope: Scope, inner: Scope, exchange: Exchange, seconds: float) -> None:
        route = route_of(inner)
        metrics = self._service.metrics
        if route == NO_ROUTE:
            metrics.refused(exchange.status)
        metrics.answered(scope["method"], route, exchange.status, seconds, exchange.num_bytes)
        if self._service.settings.access_log:
            client = scope.get("client") or ("", 0)
            line = {
                "time": round(time.time(), 3),
                "id": scope["state"]["request_id"],
                "client": client[0],
                "method": scope["method"][:16],
                "path": scope["path"][:300],
                "status": exchange.status,
                "bytes": exchange.num_bytes,
                "seconds": round(seconds, 6),
            }
            _access.info("%s", json.dumps(line | ({"cut": True} if exchange.cut else {})))


def _check_parameters(query: bytes) -> None:
    """Refuse a parameter that is given twice, of which one would be passed over.

    Raises:
        Refusal: Names it.
    """
    names: set[str] = set()
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if b"&" in query else ():
        if name in names:
            raise Refusal(422, "config", f"parameter {name[:100]!r} is given more than once; give it once.")
        names.add(name)


def route_of(scope: Scope) -> str:
    """Return the path of the route that has answered, with names of parameters instead of what was asked for."""
    path: str = getattr(scope.get("route"), "path", NO_ROUTE)
    # Routers do not tell where they were included.
    return f"/v1{path}" if path.startswith("/runs") else path


def defect(request_id: str) -> Refusal:
    """Return the answer to a request that has met a defect."""
    return Refusal(
        500,
        "error",
        "the service has a defect, or ran out of something. Its log tells more under the id of this request.",
        request=request_id,
    )


def _log_defect(request_id: str, error: Exception) -> None:
    text = "".join(traceback.format_exception(error))
    _log.error("%s", json.dumps({"id": request_id, "defect": redacted(text)}))
