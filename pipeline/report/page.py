"""The report of a run as one HTML file: everything is in it, nothing is fetched, nothing runs."""

import time
from typing import Final

from ntkpipe.configs.units import duration, size
from ntkpipe.pipeline.events import read_events
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.pipeline.report.html import Html, element, joined
from ntkpipe.pipeline.report.results import kernels_table, num_stored_chunks, solutions_section
from ntkpipe.pipeline.report.story import Story, tell
from ntkpipe.pipeline.report.style import STYLE
from ntkpipe.pipeline.report.tables import (
    drivers_table,
    faults_section,
    reads_section,
    slowest_table,
    stages_table,
    workers_section,
)
from ntkpipe.pipeline.report.throughput import throughput
from ntkpipe.pipeline.report.timeline import MAX_LANES, colour, timeline
from ntkpipe.pipeline.status import RunStatus
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.stores.base import AbstractStore

# A file that is opened from a disk may show itself, and load and run nothing, whatever got into it.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def make_report(store: AbstractStore) -> str:
    """Return the report of a run that is running, was interrupted or is finished.

    Events are read once, segment by segment; memory is bounded whatever the number of tasks.

    Raises:
        NotFoundError: There is no run.
        StorageError: What the run is cannot be read, or the store fails. Damaged events are named in the report.
    """
    run, story = Run(StoredRunReader(store)), Story()
    status = run.status()
    tell(read_events(store, story.note_damage), story)
    sections = [_header(run, status, story), *_timeline_sections(story)]
    if story.stages:
        sections += [
            _section("Stages", stages_table(story)),
            _section("Workers", workers_section(story)),
            _section("Reads", reads_section(story, num_stored_chunks(run.manifest), KERNEL_STAGE)),
            _section("Slowest tasks", slowest_table(story)),
        ]
    sections += [_section("What failed", faults_section(story), *(element("p", text) for text in status.failures))]
    if story.tenures:
        sections.append(_section("Drivers", drivers_table(story)))
    sections += [
        _section("Kernels", kernels_table(run.manifest)),
        _section("Solutions", solutions_section(run)),
        *_doubts(story),
    ]
    return _page(status, joined(*sections))


def _page(status: RunStatus, body: Html) -> str:
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", f"{status.name}: {status.state}"),
        element("style", Html(STYLE)),
    )
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    foot = element("footer", f"Made by ntkpipe report at {made} UTC from receipts and events of run {status.run_id}.")
    page = element("html", head, element("body", element("main", body, foot)), lang="en")
    return f"<!doctype html>\n{page.text}\n"


def _section(title: str, *content: Html) -> Html:
    return element("section", element("h2", title), *content)


def _header(run: Run, status: RunStatus, story: Story) -> Html:
    done, total = (sum(getattr(stage, field) for stage in status.stages) for field in ("done", "total"))
    aside = sum(stage.set_aside + stage.left_out for stage in status.stages)
    worked = sum(tenure.stop - tenure.start for tenure in story.tenures)
    gaps = sum(tenure.gap_seconds for tenure in story.tenures)
    facts = {
        "tasks": f"{done:,} of {total:,}",
        "worked": duration(worked),
        "written": size(sum(stage.num_bytes for stage in story.stages.values())),
        "failed attempts": f"{sum(stage.failures for stage in story.stages.values()):,}",
        "workers": f"{len(story.workers):,}",
        "drivers": f"{status.epoch:,}",
    }
    facts |= {"first to last event": duration(worked + gaps)} if gaps >= 1 else {}
    facts |= {"missing for good": f"{aside:,}"} if aside else {}
    tiles = [element("div", element("b", value), element("span", name), class_="tile") for name, value in facts.items()]
    parts = [
        element("h1", status.name, element("span", status.state, class_=f"state {status.state}")),
        element("p", f"{status.url} · run {status.run_id}", class_="where soft"),
        element("div", *tiles, class_="tiles"),
    ]
    if run.manifest.origin:
        parts.append(element("p", f"Finished tasks were taken over from {run.manifest.origin}.", class_="soft"))
    parts += [element("p", f"Solution {name}: {text}", class_="soft") for name, text in status.solves.items()]
    return element("header", *parts)


def _timeline_sections(story: Story) -> list[Html]:
    if not story.workers:
        return [_section("Timeline", element("p", "No task is recorded in the events of this run."))]
    entries = [element("span", element("i", class_=colour(story, stage)), stage) for stage in story.stages]
    marks = [
        element("span", element("b", sign, class_="mark"), what)
        for sign, what in (("\u00d7", "failed attempt"), ("▼", "worker lost"))
    ]
    legend = element("div", *entries, class_="legend")
    note = "The axis is the time of drivers at work; of a long gap between two of them it shows a little."
    if story.spans is None or len(story.workers) > MAX_LANES:
        note += " The height of a colour is the share of the time in which that stage was worked on."
    drawings = (
        _section(
            "Timeline",
            element("div", *entries, *marks, class_="legend"),
            _drawing(timeline(story)),
            element("p", note, class_="soft"),
        ),
        _section(
            "Throughput",
            legend,
            element("p", "Tasks per second", class_="soft"),
            _drawing(throughput(story, "tasks", "Tasks per second", lambda rate: f"{rate:.3g}/s")),
            element("p", "Bytes written per second", class_="soft"),
            _drawing(throughput(story, "bytes", "Bytes written per second", lambda rate: f"{size(rate)}/s")),
        ),
    )
    return list(drawings)


def _drawing(svg: Html) -> Html:
    return element("div", svg, class_="wide")


def _doubts(story: Story) -> list[Html]:
    """Return what of the events could not be taken at its word, if anything."""
    lines = [*story.damaged]
    if story.num_damaged > len(lines):
        lines.append(f"and {story.num_damaged - len(lines):,} more")
    if story.set_back_seconds >= 0.001:
        told = duration(story.set_back_seconds)
        lines.append(
            f"Clocks went back by {told} in all, as those of several machines may; the axis stands still there."
        )
    return [_section("What is doubtful", *(element("p", line) for line in lines))] if lines else []
