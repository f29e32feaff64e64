"""Drawing who did what when: one lane per worker, the tenures of drivers behind them, what failed on top."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log10

from ntkpipe.configs.units import duration
from ntkpipe.pipeline.report.bins import NUM_BINS
from ntkpipe.pipeline.report.facts import Tenure
from ntkpipe.pipeline.report.html import Html, element, joined, number
from ntkpipe.pipeline.report.story import Story
from ntkpipe.pipeline.report.style import NUM_COLOURS

WIDTH = 1040.0
LEFT = 150.0
"""Where the time axis begins; names stand left of it."""

TOP = 22.0
LANE = 15.0
ROW = 18.0
"""From one lane to the next."""

MAX_LANES = 48
"""With more workers a lane is that of several."""

MIN_MARK = 3.0
"""Of the width of a task that is too short to be seen."""

NUM_NAME = 22
"""Characters of a name beside a lane; all of it is shown to whoever points at it."""

MARKS = (
    ("failed", "failed attempts", "M-4 -4l8 8m0 -8l-8 8"),
    ("lost", "lost workers", "M-5 -4h10l-5 9z"),
)
"""What is drawn on top, what it means, and its outline."""

UPRIGHT = 14.0
"""Of the width of a gap into which its length can be written upright."""

STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
"""Seconds between marks of an axis; before and after them powers of ten."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The time axis of a drawing."""

    stop: float
    """In seconds."""
    left: float = LEFT
    right: float = WIDTH - 26

    def x(self, at: float) -> float:
        """Return where a moment is."""
        return self.left + (self.right - self.left) * min(at / self.stop, 1.0)

    def marks(self) -> Iterator[float]:
        """Yield round times, at most ten or so."""
        step = next((one for one in STEPS if self.stop / one <= 10), 0.0)
        if self.stop < 5 or not step:
            step = 10.0 ** ceil(log10(self.stop) - 1)
        for position in range(int(self.stop / step) + 1):
            yield position * step


@dataclass(frozen=True, slots=True)
class Lane:
    """A line of the drawing."""

    name: str
    workers: tuple[str, ...]


def colour(story: Story, stage: str) -> str:
    """Return the class of a stage."""
    return f"c{list(story.stages).index(stage) % NUM_COLOURS}"


def axis(scale: Scale, top: float, bottom: float) -> Html:
    """Return marks of time and lines through a drawing."""
    parts = []
    for at in scale.marks():
        x = scale.x(at)
        parts.append(element("path", class_="grid", d=f"M{number(x)} {number(top)}V{number(bottom)}"))
        parts.append(element("text", duration(at), class_="soft", x=x, y=bottom + 14, text_anchor="middle"))
    return joined(*parts)


def timeline(story: Story) -> Html:
    """Return the drawing; there must have been a worker."""
    lanes, scale = _lanes(story), Scale(max(story.stop, 1e-3))
    bottom = TOP + ROW * len(lanes) + 4
    whole = story.spans if len(lanes) == len(story.workers) else None
    body = [_tenures(story, scale, bottom), axis(scale, TOP, bottom)]
    for position, lane in enumerate(lanes):
        y = TOP + ROW * position + 3
        short = lane.name if len(lane.name) <= NUM_NAME else f"…{lane.name[1 - NUM_NAME :]}"
        label = element("text", element("title", lane.name), short, x=LEFT - 8, y=y + 11, text_anchor="end")
        body += [label, *([] if whole is not None else _binned(story, scale, lane, y))]
    if whole is not None:
        rows = {lane.name: TOP + ROW * position + 3 for position, lane in enumerate(lanes)}
        for span in whole:
            start, stop = scale.x(span.start), scale.x(span.stop)
            start = max(min(start, stop - MIN_MARK), LEFT)
            title = f"{span.stage} {span.task}: {duration(span.stop - span.start)}"
            box = {"x": start, "y": rows[span.worker], "width": max(stop - start, MIN_MARK), "height": LANE}
            body.append(element("rect", element("title", title), class_=f"task {colour(story, span.stage)}", **box))
    body += _marks(story, scale, lanes)
    size = f"0 0 {WIDTH:.0f} {bottom + 22:.0f}"
    return element("svg", *body, viewBox=size, role="img", aria_label="Timeline of workers")


def _lanes(story: Story) -> list[Lane]:
    names = sorted(story.workers)
    if len(names) <= MAX_LANES:
        return [Lane(name, (name,)) for name in names]
    size = ceil(len(names) / MAX_LANES)
    parts = [tuple(names[start : start + size]) for start in range(0, len(names), size)]
    return [Lane(f"{part[0]} +{len(part) - 1}" if len(part) > 1 else part[0], part) for part in parts]


def _tenures(story: Story, scale: Scale, bottom: float) -> Html:
    """Return a band for each driver, and a mark for each gap between two of them."""
    parts, before = [], None
    for tenure in story.tenures:
        start, stop = scale.x(tenure.start), scale.x(tenure.stop)
        title = element("title", _words(tenure))
        size = {"width": max(stop - start, 1.0), "height": bottom - TOP}
        parts.append(element("rect", title, class_="band", x=start, y=TOP, **size))
        if stop - start > 50 or len(story.tenures) == 1:
            parts.append(element("text", f"driver {tenure.epoch}", class_="soft", x=start + 2, y=TOP - 7))
        if before is not None:
            gap = element("title", f"nobody for {duration(tenure.gap_seconds)}")
            size = {"width": max(start - before, 1.0), "height": bottom - TOP}
            parts.append(element("rect", gap, class_="gap", x=before, y=TOP, **size))
            if start - before >= UPRIGHT and bottom - TOP >= 5 * UPRIGHT:
                x, y = number((before + start) / 2 + 4), number((TOP + bottom) / 2)
                turned = f"translate({x} {y}) rotate(-90)"
                told = duration(tenure.gap_seconds)
                parts.append(element("text", told, class_="soft", transform=turned, text_anchor="middle"))
        before = stop
    return joined(*parts)


def _words(tenure: Tenure) -> str:
    return f"driver {tenure.epoch}: {duration(tenure.stop - tenure.start)}, {tenure.commits:,} tasks"


def _binned(story: Story, scale: Scale, lane: Lane, y: float) -> Iterator[Html]:
    """Yield for each stage a path of upright lines: their height is the share of the time in which it was worked on."""
    width = story.bins.width
    pixels = scale.x(width) - scale.left
    below = [0.0] * NUM_BINS
    for stage in story.stages:
        values = story.bins.merged([("busy", worker, stage) for worker in lane.workers])
        parts = []
        for position, value in enumerate(values):
            at = position * width
            # Tasks that were waiting for their driver overlap; nobody is busier than all the time.
            share = min(value / (len(lane.workers) * width), 1.0 - below[position])
            if share <= 0.02 or at >= scale.stop:
                continue
            foot = y + LANE * (1 - below[position])
            parts.append(f"M{number(scale.x(at) + pixels / 2)} {number(foot)}v{number(-LANE * share)}")
            below[position] += share
        if parts:
            yield element("path", class_=f"bins {colour(story, stage)}", stroke_width=pixels, d="".join(parts))


def _marks(story: Story, scale: Scale, lanes: list[Lane]) -> Iterator[Html]:
    """Yield a cross where attempts have failed, and a triangle where workers were lost."""
    width = story.bins.width
    for position, lane in enumerate([*lanes, Lane("", ("",))]):
        y = TOP + ROW * position + 3 + LANE / 2 if position < len(lanes) else TOP - 6
        for kind, what, outline in MARKS:
            for place, count in enumerate(story.bins.merged([(kind, worker) for worker in lane.workers])):
                if not count:
                    continue
                x = number(scale.x((place + 0.5) * width))
                shape = {"class_": kind, "transform": f"translate({x} {number(y)})"}
                halo = element("circle", class_="halo", r=6.5)
                yield element("g", element("title", f"{what}: {count:.0f}"), halo, element("path", d=outline), **shape)
