"""Connections of clients that send too slowly, or too much, before a request can be answered."""

import asyncio
from typing import Any, Final, cast, final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

SLACK_BYTES: Final = 1 << 18
"""Of what follows a head in the same packet, such as the next request's."""


PARTING_SECONDS: Final = 2.0
"""For which a connection that the service closes waits for its client to take what was sent, and to close it, too."""


@final
class _HttpConnection(HttpToolsProtocol):
    """uvicorn's own, but that no client can keep open what the service closes.

    To close an encrypted connection is to wait half a minute for the other side, and a client that asks nothing does not
    listen.
    """

    _is_ending = False

    def shutdown(self) -> None:
        """Close the connection, after an answer that is under way."""
        self._is_ending = True
        super().shutdown()
        cut_once_closed(self.transport)

    def on_response_complete(self) -> None:
        """Go on, or end."""
        super().on_response_complete()
        if self._is_ending:
            cut_once_closed(self.transport)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection, which was idle for too long."""
        super().timeout_keep_alive_handler()
        cut_once_closed(self.transport)


def cut_once_closed(transport: asyncio.Transport) -> None:
    """Cut a connection that is being closed, once its client has had the time to take what was sent."""
    if not transport.is_closing():
        return

    def cut() -> None:
        if transport.get_write_buffer_size():
            cut_once_closed(transport)
        else:
            transport.abort()

    asyncio.get_running_loop().call_later(PARTING_SECONDS, cut)


@final
class GuardedConnection(asyncio.Protocol):
    """A connection whose heads of requests must arrive whole in time, and be of reasonable size.

    uvicorn waits for a head for ever, as for the first byte of a connection; it closes idle connections only after their
    first request.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        read_seconds: float,
        max_head_bytes: int,
    ) -> None:
        self._inner = _HttpConnection(config, server_state, app_state, _loop)
        self._read_seconds = read_seconds
        self._max_head_bytes = max_head_bytes
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._num_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the first head."""
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(self._transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Pass on what has arrived; the time for a head goes on until it is whole."""
        self._num_bytes += len(data)
        self._inner.data_received(data)
        if self._is_answering():
            self._stop_waiting()
        elif self._num_bytes > self._max_head_bytes + SLACK_BYTES:
            self._end(TOO_LARGE)
        elif self._deadline is None:
            self._wait()

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._inner.eof_received()  # type: ignore[func-returns-value]

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()

    def _is_answering(self) -> bool:
        cycle = self._inner.cycle
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(self._read_seconds, self._too_late)

    def _stop_waiting(self) -> None:
        self._num_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if not self._is_answering():
            self._end(TOO_SLOW if self._num_bytes else b"")

    def _end(self, words: bytes) -> None:
        self._stop_waiting()
        if self._transport is not None and not self._transport.is_closing():
            if words:
                self._transport.write(words)
            self._transport.close()
            cut_once_closed(self._transport)
