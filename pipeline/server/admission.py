"""How much a service does at once, and what it holds in memory for that."""

from threading import Lock
from typing import final

from ntkpipe.pipeline.server.problems import Refusal


@final
class Admission:
    """Counts requests under way and the bytes of their answers. Thread safe.

    Args:
        max_requests: Under way at once.
        max_bytes: Of answers.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self.num_requests = 0
        self.num_bytes = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._lock = Lock()

    def enter(self) -> None:
        """Let a request in.

        Raises:
            Refusal: There are too many.
        """
        with self._lock:
            if self.num_requests >= self._max_requests:
                raise Refusal(
                    503, "busy", f"{self._max_requests} requests are under way. Ask again in a moment.", retry=True
                )
            self.num_requests += 1

    def leave(self, num_bytes: int = 0) -> None:
        """Note that a request has ended, and that its answer of so many bytes is gone."""
        with self._lock:
            self.num_requests -= 1
            self.num_bytes -= num_bytes

    def take(self, num_bytes: int) -> None:
        """Set memory aside for an answer; it is given back when its request leaves.

        Raises:
            Refusal: It would never fit, or does not fit beside the answers that are being made or sent.
        """
        if num_bytes > self._max_bytes:
            raise Refusal(
                413,
                "too-large",
                f"that answer would take {num_bytes:,} bytes; this service makes answers of at most {self._max_bytes:,}.",
                limit=self._max_bytes,
                asked=num_bytes,
            )
        with self._lock:
            if self.num_bytes + num_bytes > self._max_bytes:
                raise Refusal(503, "busy", "other answers take all memory. Ask again in a moment.", retry=True)
            self.num_bytes += num_bytes
