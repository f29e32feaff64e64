"""What all routes of a service share."""

from collections.abc import Callable
from threading import Lock
from typing import Annotated, Any, Protocol, TypeVar, cast, final, runtime_checkable

from fastapi import Depends, Request

from ntkpipe.pipeline.query.formats import RUN_HEADER
from ntkpipe.pipeline.query.limits import Limits
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.pipeline.server.admission import Admission
from ntkpipe.pipeline.server.metrics import Metrics, Reading
from ntkpipe.pipeline.server.runs import MAX_NAME, Opened, Runs
from ntkpipe.pipeline.server.settings import ServerSettings
from ntkpipe.storage.pinned import require_run
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.tile_cache import TileCache

Part = TypeVar("Part")


@runtime_checkable
class Closable(Protocol):
    """What has something to end."""

    def close(self) -> None:
        """End it."""


@final
class Service:
    """The runs that are served, and what is spent on them. Thread safe; nothing is ever written to a run.

    Attributes:
        settings: Of the service.
        cache: Of decoded tiles, shared by all runs.
        runs: Below its root.
        admission: Requests under way and their memory.
        metrics: For Prometheus.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.cache = TileCache(settings.cache_bytes)
        self.runs = Runs(settings.root, self._reader, settings.max_open_runs, settings.look_seconds)
        self.admission = Admission(settings.max_requests, settings.answer_bytes)
        self.metrics = Metrics(self._readings())
        self._parts: dict[type, object] = {}
        self._lock = Lock()

    def open(self, name: str, request: Request | None = None) -> Opened:
        """Return a run as it is now.

        Args:
            name: Of the run.
            request: That may say, in the header ``ntkpipe-run``, of which run it asks whatever goes by that name by now.

        Raises:
            NotFoundError: There is none of that name.
            RunMismatchError: It is not the one that the request is about.
            StorageError: What it is cannot be read.
        """
        opened = self.runs.open(name)
        wanted = None if request is None else request.headers.get(RUN_HEADER)
        if wanted is not None:
            require_run(opened.run.manifest, wanted[:MAX_NAME], name)
        return opened

    def told(self, text: str) -> str:
        """Return a message as clients may read it: without places of this machine."""
        return self.runs.told(text)

    def close(self) -> None:
        """End what is under way beside requests."""
        for part in self._parts.values():
            if isinstance(part, Closable):
                part.close()

    def part(self, kind: type[Part], make: Callable[[], Part]) -> Part:
        """Return the service's one object of a kind; it is made when it is first asked for.

        It is closed with the service if it has a method ``close``.
        """
        with self._lock:
            if kind not in self._parts:
                self._parts[kind] = make()
            return cast(Part, self._parts[kind])

    def _readings(self) -> tuple[Reading, ...]:
        """Return what is read when Prometheus asks."""
        return (
            ("ntkpipe_requests_in_flight", "Requests under way.", False, lambda: self.admission.num_requests),
            ("ntkpipe_answer_bytes", "Of answers being made or sent.", False, lambda: self.admission.num_bytes),
            ("ntkpipe_open_runs", "Runs that are kept open.", False, lambda: self.runs.num_open),
            ("ntkpipe_tile_cache_bytes", "Of decoded tiles held.", False, lambda: self.cache.statistics.num_bytes),
            ("ntkpipe_tile_cache_hits", "Tiles that were there.", True, lambda: self.cache.statistics.hits),
            ("ntkpipe_tile_cache_misses", "Tiles that were read.", True, lambda: self.cache.statistics.misses),
            (
                "ntkpipe_tile_cache_evictions",
                "Tiles dropped for others.",
                True,
                lambda: self.cache.statistics.evictions,
            ),
        )

    def _reader(self, store: AbstractStore) -> StoredRunReader:
        limits = Limits(max_cells=self.settings.max_cells, max_bytes=self.settings.max_read_bytes)
        return StoredRunReader(store, cache=self.cache, limits=limits)


async def service_of(request: Request) -> Service:
    """Return the service of a request."""
    return cast(Service, request.app.state.service)


ServiceOf = Annotated[Service, Depends(service_of)]
"""A route's argument."""


def take_memory(request: Request, service: Service, num_bytes: int) -> None:
    """Set memory aside for the answer to a request until it is sent.

    Raises:
        Refusal: There is not enough now, or at all.
    """
    service.admission.take(num_bytes)
    state = cast(dict[str, Any], request.scope["state"])
    state["taken_bytes"] = state.get("taken_bytes", 0) + num_bytes
