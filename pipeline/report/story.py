"""What happened in a run, from its events, read once. Memory is bounded whatever the number of tasks.

The time axis begins with the first event and is that of drivers at work. Clocks of different machines, and clocks that are
set back, cannot be compared: where an event is dated before the one in front of it, no time has passed for the axis. Of a
long gap between two drivers the axis shows a little.
"""

from collections import Counter
from collections.abc import Iterable
from typing import final

from ntkpipe.configs.secrets import redacted
from ntkpipe.pipeline.events import Event
from ntkpipe.pipeline.report.bins import TimeBins
from ntkpipe.pipeline.report.facts import Fault, Largest, Span, StageFacts, Tenure, WorkerFacts
from ntkpipe.workers.tasks import MEMORY_KIND

MAX_SPANS = 2_000
"""Tasks that are drawn one by one; with more of them only bins are."""

MAX_FAULTS = 200
MAX_SLOWEST = 15
MAX_DAMAGED = 20

MAX_WORKERS = 10_000
"""That are told apart; later ones are taken together."""

MAX_STAGES = 12
OTHERS = "others"

GAP_SHARE = 0.04
"""Of the time before it, what the axis shows of a gap between drivers, and at least a second."""

OF_LOSS = ("worker-lost", "deadline", MEMORY_KIND)
"""Kinds of failures that a worker's end is told of right before: it died, or the driver has ended it."""

MAX_TEXT = 400
"""Characters of a message that are kept."""


@final
class Story:
    """Told event by event; see :func:`tell`.

    Attributes:
        stop: End of the time axis, in seconds.
        tenures: Of drivers, in order.
        stages: By family, in the order in which they were first heard of.
        workers: By name.
        bins: Over time: ``("tasks", stage)``, ``("bytes", stage)``, ``("busy", worker, stage)`` in seconds, and
            ``("failed", worker)`` and ``("lost", worker)`` in numbers.
        spans: Every task, None once there were too many.
        slowest: Tasks.
        faults: The first ones.
        fault_counts: All of them by stage, kind and verdict; that a worker is lost with a task is one, that of the task.
        damaged: What could not be read.
        num_damaged: How much that was.
        set_back_seconds: By how much clocks went back in all.
    """

    def __init__(self) -> None:
        self.stop = 0.0
        self.tenures: list[Tenure] = []
        self.stages: dict[str, StageFacts] = {}
        self.workers: dict[str, WorkerFacts] = {}
        self.bins = TimeBins()
        self.spans: list[Span] | None = []
        self.slowest = Largest(MAX_SLOWEST)
        self.faults: list[Fault] = []
        self.fault_counts: Counter[tuple[str, str, str]] = Counter()
        self.damaged: list[str] = []
        self.num_damaged = 0
        self.set_back_seconds = 0.0
        self._clock_at = 0.0
        self._lost: dict[str, tuple[tuple[str, str, str], Fault]] = {}

    def note_damage(self, text: str) -> None:
        """Keep what could not be read."""
        self.num_damaged += 1
        if len(self.damaged) < MAX_DAMAGED:
            self.damaged.append(text)

    def hear(self, event: Event) -> None:
        """Take in the next event."""
        self._advance(event)
        if event.name == "commit":
            self._commit(event)
        elif event.name == "failure":
            self._failure(event)
        elif event.name == "worker":
            self._worker(event)
        elif event.name == "finish":
            self.tenures[-1].ending = "finished"
        elif event.name == "stop":
            self.tenures[-1].ending = f"stopped: {_told(event.text('message') or event.text('kind'))}"

    def _advance(self, event: Event) -> None:
        """Move to the time of an event; the first one of an epoch begins a tenure."""
        passed = event.time - self._clock_at if self.tenures else 0.0
        if passed < 0:
            self.set_back_seconds -= passed
            passed = 0.0
        self._clock_at = event.time
        if self.tenures and self.tenures[-1].epoch == event.epoch:
            self.stop += passed
        else:
            self.stop += min(passed, max(1.0, GAP_SHARE * self.stop))
            process = event.fields.get("process") if event.name == "start" else None
            self.tenures.append(
                Tenure(
                    event.epoch,
                    _short(event.text("host")) if event.name == "start" else "",
                    str(process) if isinstance(process, int) else "",
                    event.time,
                    self.stop,
                    self.stop,
                    passed,
                )
            )
        self.tenures[-1].stop = self.stop

    def _commit(self, event: Event) -> None:
        name, seconds = _short(event.text("worker", "unknown")), event.number("seconds")
        stage_name, worker_name = family(event.text("stage"), self.stages), self._name(name)
        stage, worker = self._stage(stage_name), self._of(worker_name)
        start, num_bytes, read = max(self.stop - seconds, 0.0), event.number("bytes"), event.number("bytes_read")
        self.tenures[-1].commits += 1
        stage.durations.add(seconds)
        stage.num_bytes += num_bytes
        stage.bytes_read += read
        stage.start, stage.stop = min(stage.start, start), self.stop
        if "chunks_read" in event.fields:
            stage.chunks_read += event.number("chunks_read")
            stage.reads[min(int(event.number("chunks_read")), 1000)] += 1
        self._lost.pop(worker_name, None)
        worker.tasks += 1
        worker.busy_seconds += seconds
        worker.num_bytes += num_bytes
        worker.bytes_read += read
        worker.peak_bytes = max(worker.peak_bytes, event.number("peak_bytes"))
        worker.see(start, self.stop)
        number, total = worker.by_stage.get(stage_name, (0, 0.0))
        worker.by_stage[stage_name] = number + 1, total + seconds
        self.bins.add(("tasks", stage_name), start, self.stop, 1.0)
        self.bins.add(("bytes", stage_name), start, self.stop, num_bytes)
        self.bins.add(("busy", worker_name, stage_name), start, self.stop, self.stop - start)
        span = Span(worker_name, stage_name, _short(event.text("task")), start, self.stop)
        self.slowest.add(seconds, span)
        if self.spans is not None:
            self.spans.append(span)
            if len(self.spans) > MAX_SPANS:
                self.spans = None

    def _failure(self, event: Event) -> None:
        stage = family(event.text("stage"), self.stages)
        self._stage(stage).failures += 1
        self.tenures[-1].failures += 1
        name = _short(event.text("worker"))
        if name:
            if event.text("kind") in OF_LOSS:
                self._take_back(self._name(name))
            worker = self._of(self._name(name))
            worker.failures += 1
            worker.see(self.stop, self.stop)
        self.bins.add(("failed", self._name(name) if name else ""), self.stop, self.stop, 1.0)
        self._fault(event, stage, event.text("kind"), event.text("message"), event.text("verdict"))

    def _worker(self, event: Event) -> None:
        """Take in what became of a worker; one that has never answered has no name, and no lane."""
        name, state, message = _short(event.text("worker")), _short(event.text("state")), event.text("message")
        if name:
            name = self._name(name)
            worker = self._of(name)
            worker.state = state
            worker.device = _short(event.text("device")) or worker.device
            worker.see(self.stop, self.stop)
            self._lost.pop(name, None)
        if state == "lost":
            self.bins.add(("lost", name), self.stop, self.stop, 1.0)
            found = self._fault(event, "", "worker-lost", message or "the worker was lost", "")
            if name:
                self._lost[name] = found
        elif message:
            self._fault(event, "", f"worker {state}", message, "")

    def _take_back(self, worker: str) -> None:
        """Count no longer that a worker was lost: what it was doing is told as failed, and the two are one incident."""
        lost = self._lost.pop(worker, None)
        if lost is None:
            return
        key, fault = lost
        self.fault_counts -= Counter([key])
        self.faults = [other for other in self.faults if other is not fault]

    def _fault(
        self, event: Event, stage: str, kind: str, message: str, verdict: str
    ) -> tuple[tuple[str, str, str], Fault]:
        """Count a fault and keep it if there is room; return as what it was counted, and itself."""
        kind, verdict = _short(kind), _short(verdict)
        key = (stage, kind, verdict)
        if len(self.fault_counts) >= MAX_FAULTS and key not in self.fault_counts:
            key = (OTHERS, OTHERS, OTHERS)
        self.fault_counts[key] += 1
        task, worker = _short(event.text("task")), _short(event.text("worker"))
        fault = Fault(event.epoch, self.stop, stage, task, kind, _told(message), verdict, worker)
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)
        return key, fault

    def _stage(self, name: str) -> StageFacts:
        return self.stages.setdefault(name, StageFacts())

    def _name(self, worker: str) -> str:
        return worker if worker in self.workers or len(self.workers) < MAX_WORKERS else OTHERS

    def _of(self, name: str) -> WorkerFacts:
        return self.workers.setdefault(name, WorkerFacts())


def tell(events: Iterable[Event], story: Story) -> Story:
    """Take in all events of a run, in order."""
    for event in events:
        story.hear(event)
    return story


def family(stage: str, known: Iterable[str]) -> str:
    """Return what a stage is shown as: columns of a factorisation, for one, are not told apart."""
    name = _short(stage.partition("-")[0]) or OTHERS
    names = list(known)
    return name if name in names or len(names) < MAX_STAGES else OTHERS


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."


def _told(message: str) -> str:
    # What the environment of the driver did not call a secret may be one here.
    return _short(redacted(message))
