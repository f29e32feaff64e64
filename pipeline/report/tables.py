"""The tables of a report."""

import time
from collections.abc import Iterable, Sequence
from statistics import median

from ntkpipe.configs.units import duration, size
from ntkpipe.pipeline.report.facts import WorkerFacts
from ntkpipe.pipeline.report.html import Child, Html, element, joined
from ntkpipe.pipeline.report.story import Story

MAX_ROWS = 60
"""Of the table of workers; of more of them those that had most to do are shown."""

MAX_READS = 12
"""Bars of the histogram of reads."""


def table(head: Sequence[str], rows: Iterable[Sequence[Child]], *, text: frozenset[int], long: int = -1) -> Html:
    """Return a table.

    Args:
        head: Names of its columns.
        rows: Cells.
        text: Columns that are not numbers.
        long: A column whose text is broken into lines.
    """

    def kind(column: int) -> dict[str, str]:
        return {"class_": "long"} if column == long else {"class_": "text"} if column in text else {}

    top = element("tr", *(element("th", name, **kind(column)) for column, name in enumerate(head)))
    body = [element("tr", *(element("td", cell, **kind(column)) for column, cell in enumerate(row))) for row in rows]
    return element("div", element("table", element("thead", top), element("tbody", *body)), class_="wide")


def stages_table(story: Story) -> Html:
    """Return how long the tasks of each stage took, and what they wrote and read."""
    head = ("stage", "tasks", "from first to last", "median", "95 %", "longest", "written", "read", "failed attempts")
    rows = []
    for name, stage in story.stages.items():
        took = stage.durations
        rows.append(
            (
                name,
                took.number,
                duration(stage.seconds),
                duration(took.quantile(0.5)),
                duration(took.quantile(0.95)),
                duration(took.longest),
                size(stage.num_bytes),
                size(stage.bytes_read) if stage.bytes_read else "",
                stage.failures,
            )
        )
    return table(head, rows, text=frozenset({0}))


def workers_section(story: Story) -> Html:
    """Return what each worker did, how fast, and the most memory that it held."""
    ranked = sorted(story.workers.items(), key=lambda item: (-item[1].tasks, item[0]))
    shown = sorted(ranked[:MAX_ROWS])
    peaks = [worker.peak_bytes for worker in story.workers.values() if worker.peak_bytes]
    largest = max(peaks, default=0.0)
    said = "This version of ntkpipe did not record how much memory workers held."
    if peaks:
        said = f"The most memory that a worker's process held was {size(largest)}; the median is {size(median(peaks))}."
    if len(ranked) > MAX_ROWS:
        said += f" Of {len(ranked):,} workers the {MAX_ROWS} that did most are shown."
    head = ("worker", "device", "tasks", "busy", "wrote", "speed", "most memory", "failed", "last state")
    rows = []
    for name, worker in shown:
        busy = min(worker.busy_seconds / worker.seconds, 1.0) if worker.seconds else 0.0
        rate = size(worker.num_bytes / worker.busy_seconds) if worker.busy_seconds else ""
        rows.append(
            (
                name,
                worker.device,
                worker.tasks,
                joined(f"{100 * busy:.0f} %", meter(busy)),
                f"{rate}/s" if rate else "",
                speed(story, worker),
                joined(size(worker.peak_bytes), meter(worker.peak_bytes / largest)) if worker.peak_bytes else "",
                worker.failures,
                worker.state,
            )
        )
    note = "Busy is the share of the time from its first sign of life to its last one. Speed is that of all workers at the "
    note += "same stages, which is 1."
    return joined(element("p", said), table(head, rows, text=frozenset({0, 1, 8})), element("p", note, class_="soft"))


def speed(story: Story, worker: WorkerFacts) -> str:
    """Return how fast a worker was: the time that the mean worker takes for its tasks, over the time that it took."""
    expected = sum(number * story.stages[stage].durations.mean for stage, (number, _) in worker.by_stage.items())
    return f"{expected / worker.busy_seconds:.2f}" if worker.busy_seconds else ""


def reads_section(story: Story, num_stored: int, stage_name: str) -> Html:
    """Return how often what the features stage stored was read by kernel blocks.

    Args:
        story: Of the run.
        num_stored: Chunks of features and diagonals that the run stores.
        stage_name: Of the blocks.
    """
    stage = story.stages.get(stage_name)
    if stage is None or not stage.reads:
        return element("p", "No block of a kernel has recorded what it read.")
    tasks = sum(stage.reads.values())
    said = f"{tasks:,} blocks of kernels have read {stage.chunks_read:,.0f} chunks."
    if num_stored:
        said += f" The run stores {num_stored:,} chunks of features and diagonals: each was read "
        said += f"{stage.chunks_read / num_stored:.2f} times on average."
    counts = sorted(stage.reads.items())
    if len(counts) > MAX_READS:
        width = -(-(counts[-1][0] + 1) // MAX_READS)
        ranges: dict[int, int] = {}
        for chunks, number in counts:
            ranges[chunks // width] = ranges.get(chunks // width, 0) + number
        named = [(f"{at * width} to {at * width + width - 1}", number) for at, number in sorted(ranges.items())]
    else:
        named = [(str(chunks), number) for chunks, number in counts]
    rows = [(name, joined(f"{number:,}", meter(number / tasks))) for name, number in named]
    return joined(element("p", said), table(("chunks read", "by so many blocks"), rows, text=frozenset()))


def slowest_table(story: Story) -> Html:
    """Return the tasks that took longest, and how many times the median of their stage."""
    rows = []
    for seconds, span in story.slowest.sorted():
        middle = story.stages[span.stage].durations.quantile(0.5)
        times = f"{seconds / middle:.1f}" if middle else ""
        rows.append((span.stage, span.task, span.worker, duration(seconds), times, duration(span.stop)))
    head = ("stage", "task", "worker", "took", "times the median", "ended at")
    return table(head, rows, text=frozenset({0, 1, 2}))


def faults_section(story: Story) -> Html:
    """Return what went wrong, counted and one by one."""
    total = sum(story.fault_counts.values())
    if not total:
        return element("p", "Nothing is recorded to have failed.")
    counted = [
        (stage, kind, verdict, number) for (stage, kind, verdict), number in story.fault_counts.most_common(MAX_ROWS)
    ]
    counts = table(("stage", "kind", "what became of it", "times"), counted, text=frozenset({0, 1, 2}))
    rows = [
        (
            fault.epoch,
            duration(fault.at),
            fault.stage,
            fault.task,
            fault.worker,
            fault.kind,
            fault.verdict,
            fault.message,
        )
        for fault in story.faults
    ]
    head = ("driver", "at", "stage", "task", "worker", "kind", "what became of it", "message")
    more = f"The first {len(rows):,} of {total:,}:" if total > len(rows) else "One by one:"
    return joined(counts, element("p", more, class_="soft"), table(head, rows, text=frozenset({2, 3, 4, 5, 6}), long=7))


def drivers_table(story: Story) -> Html:
    """Return who has driven the run, when, and how that ended."""
    rows = []
    for tenure in story.tenures:
        process = f"process {tenure.process} on {tenure.host}" if tenure.process else ""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(tenure.clock_at))
        gap = duration(tenure.gap_seconds) if tenure.gap_seconds else ""
        ending = tenure.ending or "no last word"
        took = duration(tenure.stop - tenure.start)
        rows.append((tenure.epoch, process, began, gap, took, tenure.commits, tenure.failures, ending))
    head = ("driver", "who", "began (UTC)", "after a gap of", "worked for", "tasks", "failed attempts", "ended")
    return table(head, rows, text=frozenset({1, 2}), long=7)


def meter(share: float) -> Html:
    """Return a bar that is filled to a share."""
    filled = element("i", style=f"width:{100 * min(max(share, 0.0), 1.0):.0f}%")
    return element("span", filled, class_="meter")
