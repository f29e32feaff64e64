"""The answer to one request on its way to the client."""

import asyncio
from typing import Final, final

from starlette.types import Message, Send

from ntkpipe.pipeline.server.problems import MEDIA_TYPE, Refusal
from ntkpipe.pipeline.server.security import HEADERS

PIECE_BYTES: Final = 1 << 18
"""Are handed to the connection at a time."""


@final
class Exchange:
    """Sends an answer in pieces that the client must take in time, with the headers of every answer.

    Args:
        head: Whether only the head is wanted.
        send: To the client.
        write_seconds: In which the client must take each piece.

    Attributes:
        status: Of the answer; 499 while there is none.
        num_bytes: Of content that was sent.
        started: Whether the head is sent.
        closed: Whether what comes now is thrown away, since another answer was given.
        cut: Whether the client was too slow.
    """

    def __init__(self, head: bool, send: Send, write_seconds: float) -> None:
        self.status = 499
        self.num_bytes = 0
        self.started = False
        self.closed = False
        self.cut = False
        self._head = head
        self._send = send
        self._write_seconds = write_seconds

    async def send(self, message: Message) -> None:
        """Send a part of the answer.

        Raises:
            TimeoutError: The client does not take it.
        """
        if not self.closed:
            await self._pass(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with a problem, unless there is an answer already."""
        if self.started:
            return
        self.closed = True
        body = refusal.body
        headers = {**refusal.headers, "content-type": MEDIA_TYPE, "content-length": str(len(body))}
        # Of a request that was not read to its end, the rest must not be taken for the next one.
        if refusal.status in (408, 413, 431):
            headers["connection"] = "close"
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        try:
            await self._pass({"type": "http.response.start", "status": refusal.status, "headers": encoded})
            await self._pass({"type": "http.response.body", "body": body})
        except TimeoutError:
            self.cut = True

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            await self._timely({**message, "headers": [*message.get("headers", ()), *HEADERS]})
            return
        if message["type"] != "http.response.body":
            return
        more = message.get("more_body", False)
        body = memoryview(b"" if self._head else message.get("body", b""))
        for start in range(0, len(body), PIECE_BYTES) if len(body) > PIECE_BYTES else (0,):
            piece = body[start : start + PIECE_BYTES]
            last = start + PIECE_BYTES >= len(body)
            await self._timely({**message, "body": piece, "more_body": more or not last})
            self.num_bytes += len(piece)

    async def _timely(self, message: Message) -> None:
        async with asyncio.timeout(self._write_seconds):
            await self._send(message)
