"""A storage that all workers share: what they ask for comes after what was asked for before."""

from dataclasses import dataclass
from typing import NamedTuple, final

from ntkpipe.configs.cluster import StorageConfig


@final
@dataclass(slots=True)
class Server:
    """Serves so many units a second, in the order in which they are asked for.

    A worker that is alone is not slowed down by it; all together never get more than its rate.
    """

    rate: float
    """Units per second."""
    free_at: float = 0.0
    """When all that was asked for is served."""
    units: float = 0.0
    """Asked for in all."""

    def serve(self, now: float, units: float) -> float:
        """Take units; return when they are served."""
        if not units:
            return now
        self.free_at = max(self.free_at, now) + units / self.rate
        self.units += units
        return self.free_at


@final
class Moved(NamedTuple):
    """When bytes have been moved, and what kept them."""

    at: float
    bandwidth: float
    """Seconds spent waiting for bytes of others."""
    requests: float
    """Seconds spent waiting for requests of others."""


@final
class SharedStorage:
    """Bytes read, bytes written and requests. To be asked in the order of time.

    Args:
        storage: Its rates.
    """

    def __init__(self, storage: StorageConfig) -> None:
        self.reads = Server(storage.total_read)
        self.writes = Server(storage.total_write)
        self.requests = Server(storage.total_requests)

    def read(self, now: float, alone: float, num_bytes: float, num_requests: float) -> Moved:
        """Return when a worker that begins to read now is done.

        Args:
            now: Seconds.
            alone: Seconds that it takes without anybody else.
            num_bytes: Of its chunks.
            num_requests: That it makes.
        """
        return self._move(self.reads, now, alone, num_bytes, num_requests)

    def write(self, now: float, alone: float, num_bytes: float, num_requests: float) -> Moved:
        """Return when a worker that begins to write now is done."""
        return self._move(self.writes, now, alone, num_bytes, num_requests)

    def _move(self, server: Server, now: float, alone: float, num_bytes: float, num_requests: float) -> Moved:
        earliest = now + alone
        moved, answered = server.serve(now, num_bytes), self.requests.serve(now, num_requests)
        if moved <= earliest and answered <= earliest:
            return Moved(earliest, 0.0, 0.0)
        if moved >= answered:
            return Moved(moved, moved - earliest, 0.0)
        return Moved(answered, 0.0, answered - earliest)
