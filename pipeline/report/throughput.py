"""Drawing how fast stages were over time."""

from collections.abc import Callable
from math import ceil, floor, log10

from ntkpipe.pipeline.report.html import Html, element, number
from ntkpipe.pipeline.report.story import Story
from ntkpipe.pipeline.report.timeline import LEFT, TOP, WIDTH, Scale, axis, colour

HEIGHT = 130.0
MULTIPLES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def throughput(story: Story, what: str, label: str, told: Callable[[float], str]) -> Html:
    """Return a drawing of a rate over time, one area per stage.

    Args:
        story: Of the run.
        what: ``tasks`` or ``bytes``.
        label: Of the drawing.
        told: Gives a rate in words.
    """
    scale, bottom = Scale(max(story.stop, 1e-3)), TOP + HEIGHT
    rates = {stage: _rates(story, what, stage, scale.stop) for stage in story.stages}
    top = _round_up(max((max(found, default=0.0) for found in rates.values()), default=0.0))
    body = [axis(scale, TOP, bottom)]
    for share in (0.0, 0.5, 1.0):
        y = bottom - HEIGHT * share
        body.append(element("path", class_="grid", d=f"M{number(LEFT)} {number(y)}H{number(scale.right)}"))
        body.append(element("text", told(top * share), class_="soft", x=LEFT - 8, y=y + 4, text_anchor="end"))
    for stage, found in rates.items():
        if any(found):
            body.append(
                element(
                    "path",
                    element("title", stage),
                    class_=f"area {colour(story, stage)}",
                    d=_steps(found, story.bins.width, scale, top, bottom),
                )
            )
    return element("svg", *body, viewBox=f"0 0 {WIDTH:.0f} {bottom + 22:.0f}", role="img", aria_label=label)


def _rates(story: Story, what: str, stage: str, stop: float) -> list[float]:
    """Return the rate in each bin; the last one is not full yet."""
    width, found = story.bins.width, story.bins.get((what, stage))
    used = min(ceil(stop / width), len(found))
    return [value / min(width, max(stop - position * width, 1e-3)) for position, value in enumerate(found[:used])]


def _steps(rates: list[float], width: float, scale: Scale, top: float, bottom: float) -> str:
    """Return the outline of a rate that is constant in each bin; where it is 0 there is none."""
    parts, before = [], 0.0
    for position, rate in enumerate([*rates, 0.0]):
        x, y = number(scale.x(position * width)), number(bottom - HEIGHT * rate / top)
        if rate and not before:
            parts.append(f"M{x} {number(bottom)}V{y}")
        elif rate != before:
            parts.append(f"H{x}V{y}" if rate else f"H{x}V{number(bottom)}z")
        before = rate
    return "".join(parts)


def _round_up(value: float) -> float:
    """Return the next of a few round multiples of a power of ten; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return next(step * power for step in MULTIPLES if step * power >= value * 0.999)
