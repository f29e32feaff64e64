"""What happens in a run, as metrics of Ray: its agents hand them to Prometheus under names that begin with ``ray_``.

Only the driver counts, once for every commit and failure, so that the numbers add up to those of the log of events. Tags
are few, because each value of one is a series of its own.
"""

from collections.abc import Mapping
from typing import Any, final

from ray.util.metrics import Counter, Gauge, Histogram

SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
"""Boundaries of the histogram of tasks; the last ones are those of solves."""


@final
class RayMetrics:
    """Counts events; to be told of them once Ray is connected. Of what else is told of a run only workers are of interest."""

    def __init__(self) -> None:
        by_stage = ("stage",)
        self._committed = Counter("ntkpipe_tasks_committed_total", "Tasks with a receipt.", by_stage)
        self._failed = Counter("ntkpipe_attempts_failed_total", "Attempts at tasks that failed.", by_stage)
        self._written = Counter("ntkpipe_bytes_written_total", "Bytes of chunks and objects written.", by_stage)
        self._read = Counter("ntkpipe_bytes_read_total", "Bytes read from chunks of the run.", by_stage)
        self._seconds = Histogram("ntkpipe_task_seconds", "Seconds that workers spent on a task.", SECONDS, by_stage)
        self._ready = Gauge("ntkpipe_workers_ready", "Workers that take tasks.")
        self._workers: set[str] = set()

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Count an event."""
        if event == "commit":
            tags = {"stage": str(fields["stage"])}
            self._committed.inc(tags=tags)
            # A counter of Ray refuses to be raised by nothing.
            for counter, field in ((self._written, "bytes"), (self._read, "bytes_read")):
                if fields.get(field):
                    counter.inc(fields[field], tags)
            self._seconds.observe(fields["seconds"], tags)
        elif event == "failure":
            self._failed.inc(tags={"stage": str(fields["stage"])})
        elif event == "worker":
            # One that has not said where it is has no name yet.
            name = str(fields.get("worker", ""))
            self._workers.discard(name)
            if name and fields["state"] == "ready":
                self._workers.add(name)
            self._ready.set(len(self._workers))

    def workers(self, ready: int, wanted: int) -> None:
        """Tell again how many there are: an agent forgets a gauge once it has told of it."""
        self._ready.set(len(self._workers))

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore it."""

    def task(self, name: str, num_bytes: int) -> None:
        """Ignore it: commits are events."""

    def attempt_failed(self, name: str) -> None:
        """Ignore it: failures are events."""

    def note(self, text: str) -> None:
        """Ignore it."""
