"""What a service tells Prometheus. No label ever holds what a client has written."""

from collections.abc import Callable, Iterator
from typing import Final, final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Seconds."""

METHODS: Final = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
OTHER: Final = "other"

Reading = tuple[str, str, bool, Callable[[], float]]
"""Name, help, whether it only grows, and how it is read."""


@final
class Metrics:
    """Counts requests, by route and not by path, in a registry of its own.

    Args:
        readings: What is read when it is asked for, such as the bytes of a cache.
    """

    def __init__(self, readings: tuple[Reading, ...] = ()) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ntkpipe_requests", "Requests that were answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "ntkpipe_request_seconds",
            "From a request to the end of its answer.",
            ("route",),
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._sent = Counter("ntkpipe_sent_bytes", "Content of answers.", registry=self._registry)
        self._cells = Counter("ntkpipe_cells", "Values in answers.", registry=self._registry)
        self._refused = Counter(
            "ntkpipe_refused_requests", "Refused before a route saw them.", ("status",), registry=self._registry
        )
        self._registry.register(_Readings(readings))

    def answered(self, method: str, route: str, status: int, seconds: float, num_bytes: int) -> None:
        """Count a request that a route has answered."""
        method = method if method in METHODS else OTHER
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._sent.inc(num_bytes)

    def refused(self, status: int) -> None:
        """Count a request that reached no route."""
        self._refused.labels(str(status)).inc()

    def read(self, num_cells: int) -> None:
        """Count values of an answer."""
        self._cells.inc(num_cells)

    def text(self) -> bytes:
        """Return everything in Prometheus' format."""
        return generate_latest(self._registry)


@final
class _Readings(Collector):
    """Read when Prometheus asks."""

    def __init__(self, readings: tuple[Reading, ...]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        for name, text, grows, read in self._readings:
            yield (CounterMetricFamily if grows else GaugeMetricFamily)(name, text, value=read())
