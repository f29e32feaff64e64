"""A run's story as a document."""

import dataclasses
import math
from collections import OrderedDict
from threading import Lock
from typing import Final, final

from ntkpipe.pipeline.events import read_events
from ntkpipe.pipeline.report.bins import NUM_BINS
from ntkpipe.pipeline.report.story import Story, tell
from ntkpipe.pipeline.server.timeline_documents import (
    Bins,
    FaultItem,
    SpanItem,
    StageItem,
    TenureItem,
    Timeline,
    WorkerItem,
)
from ntkpipe.storage.stores.base import AbstractStore

MAX_KEPT: Final = 16


@final
class Timelines:
    """The timelines that were made last, as long as no events have come. Thread safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Timeline] = OrderedDict()
        self._lock = Lock()

    def of(self, store: AbstractStore, version: str) -> Timeline:
        """Return the timeline of a run.

        Args:
            store: Of the run.
            version: Of its events.
        """
        with self._lock:
            found = self._kept.get(version)
        if found is None:
            story = Story()
            tell(read_events(store, story.note_damage), story)
            found = timeline_of(story)
        with self._lock:
            self._kept[version] = found
            self._kept.move_to_end(version)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found


def timeline_of(story: Story) -> Timeline:
    """Return stages, workers, tasks and faults on the time axis of drivers at work, in seconds from its beginning."""
    stages = [
        StageItem(
            stage=name,
            start=_told(facts.start),
            stop=facts.stop,
            seconds=facts.seconds,
            tasks=facts.durations.number,
            bytes=facts.num_bytes,
            bytes_read=facts.bytes_read,
            failures=facts.failures,
            mean_seconds=facts.durations.mean,
            median_seconds=facts.durations.quantile(0.5),
            longest_seconds=facts.durations.longest,
        )
        for name, facts in story.stages.items()
    ]
    workers = [
        WorkerItem(
            name=name,
            tasks=facts.tasks,
            busy_seconds=facts.busy_seconds,
            start=_told(facts.start),
            stop=facts.stop,
            failures=facts.failures,
            num_bytes=facts.num_bytes,
            peak_bytes=facts.peak_bytes,
            device=facts.device,
            state=facts.state,
            by_stage=facts.by_stage,
        )
        for name, facts in story.workers.items()
    ]
    spans = story.spans
    return Timeline(
        seconds=story.stop,
        stages=stages,
        workers=workers,
        spans=None if spans is None else [SpanItem.model_validate(dataclasses.asdict(span)) for span in spans],
        tenures=[TenureItem.model_validate(dataclasses.asdict(tenure)) for tenure in story.tenures],
        faults=[FaultItem.model_validate(dataclasses.asdict(fault)) for fault in story.faults],
        bins=Bins(
            width=story.bins.width,
            number=NUM_BINS,
            tasks={name: story.bins.get(("tasks", name)) for name in story.stages},
            bytes={name: story.bins.get(("bytes", name)) for name in story.stages},
        ),
        damaged=story.damaged,
    )


def _told(start: float) -> float:
    return start if math.isfinite(start) else 0.0
