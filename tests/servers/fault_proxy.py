"""A proxy in front of an object store that does to requests and answers what bad networks and busy services do.

It forwards Host and signatures unchanged, so that clients sign for the proxy and the service believes them.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

WRITES = ("PUT", "POST", "DELETE")
HOP_HEADERS = ("connection", "expect", "keep-alive", "proxy-connection", "transfer-encoding")
CONFLICT = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>ConditionalRequestConflict</Code><Message>Conflicting conditional operation.</Message></Error>"
)
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message><RequestId>0</RequestId></Error>"
)
CONDITIONS = ("if-none-match", "x-goog-if-generation-match")


class FaultProxy:
    """What goes wrong can be changed at any time; shares are of all requests that it applies to, by a seeded generator.

    Attributes:
        endpoint: URL of the proxy.
        busy_share: Of requests that are answered with 503 SlowDown and not passed on.
        conflict_share: Of writes "only if it does not exist" that are answered with 409 and not passed on.
        reset_share: Of requests whose connection is reset before they are passed on.
        lost_share: Of writes that the service carries out, and whose connection is reset instead of an answer.
        truncated_share: Of reads whose answers promise all bytes and bring half of them.
        delay_seconds: Before every answer.
        ignore_conditions: Whether headers that say "only if it does not exist" are taken away.
        requests: How many requests came, by method.
        injected: How many faults were injected, by name.
        watch: Is told method and path of every request before it is passed on.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        # Bound for as long as the proxy lives, so that the port is nobody else's while the server is stopped. Since it does
        # not listen, a server may bind the same port, and connections are refused where there is none.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self._port: int = self._place.getsockname()[1]
        self.busy_share = self.conflict_share = self.reset_share = self.lost_share = self.truncated_share = (
            self.delay_seconds
        ) = 0.0
        self.ignore_conditions = False
        self.watch: Callable[[str, str], None] | None = None
        self.requests: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        proxy = self

        class Handler(_Handler):
            def setup(self) -> None:
                self.proxy = proxy
                super().setup()

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on and cut those that there are."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop, and give up the port."""
        self.stop()
        self._place.close()

    def quiet(self) -> None:
        """Let everything through from now on."""
        self.busy_share = self.conflict_share = self.reset_share = self.lost_share = self.truncated_share = (
            self.delay_seconds
        ) = 0.0
        self.ignore_conditions = False

    def happens(self, name: str, share: float) -> bool:
        """Draw whether a fault happens to a request, and count it."""
        if not share:
            return False
        with self._lock:
            drawn = self._random.random() < share
            self.injected[name] += drawn
        return drawn

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def count(self, method: str) -> None:
        with self._lock:
            self.requests[method] += 1

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> "Answer":
        """Ask the service."""
        connection = http.client.HTTPConnection(*self._upstream, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                dropped = name.lower() in HOP_HEADERS or (self.ignore_conditions and name.lower() in CONDITIONS)
                if not dropped:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Answer(response.status, response.reason, response.getheaders(), response.read())
        finally:
            connection.close()


class Answer:
    def __init__(self, status: int, reason: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.reason, self.headers, self.body = status, reason, headers, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are separate writes; without this each answer waits for an acknowledgement.
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def setup(self) -> None:
        super().setup()
        self.proxy.opened(self.connection)

    def finish(self) -> None:
        self.proxy.closed(self.connection)
        with suppress(OSError):
            super().finish()

    def handle_one_request(self) -> None:
        # Clients and tests cut connections; that is no error of the proxy.
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def do_GET(self) -> None:
        proxy, body = self.proxy, self._body()
        proxy.count(self.command)
        if proxy.watch is not None:
            proxy.watch(self.command, self.path)
        if proxy.delay_seconds:
            time.sleep(proxy.delay_seconds)
        if proxy.happens("reset", proxy.reset_share):
            self._reset()
            return
        if proxy.happens("busy", proxy.busy_share):
            self._send(Answer(503, "Slow Down", [("Content-Type", "application/xml")], SLOW_DOWN))
            return
        conditional = any(name in self.headers for name in CONDITIONS)
        if conditional and proxy.happens("conflict", proxy.conflict_share):
            self._send(Answer(409, "Conflict", [("Content-Type", "application/xml")], CONFLICT))
            return
        answer = proxy.forward(self.command, self.path, self.headers.items(), body)
        if self.command in WRITES and proxy.happens("lost", proxy.lost_share):
            self._reset()
            return
        truncated = self.command == "GET" and len(answer.body) > 1 and answer.status < 300
        self._send(answer, truncated=truncated and proxy.happens("truncated", proxy.truncated_share))

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        del self.headers["Transfer-Encoding"]
        self.headers["Content-Length"] = str(sum(map(len, parts)))
        return b"".join(parts)

    def _send(self, answer: Answer, *, truncated: bool = False) -> None:
        self.send_response_only(answer.status, answer.reason)
        has_length = False
        for name, value in answer.headers:
            if name.lower() not in HOP_HEADERS:
                self.send_header(name, value)
                has_length |= name.lower() == "content-length"
        if not has_length and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if truncated else answer.body)
        if truncated:
            self.close_connection = True

    def _reset(self) -> None:
        self.close_connection = True
        # Closing with this option sends RST.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextmanager
def fault_proxy(upstream: str, seed: int = 0) -> Iterator[FaultProxy]:
    """Run a proxy in front of a service that answers at ``upstream``."""
    proxy = FaultProxy(upstream, seed)
    try:
        yield proxy
    finally:
        proxy.close()
