"""Logs of events that no driver has written: as long, as damaged and as hostile as a test needs them."""

import json
import random
from collections.abc import Iterable, Iterator
from heapq import heappop, heapreplace
from itertools import islice
from pathlib import Path
from typing import Any

from ntkpipe.storage import layout

STARTED = 1_790_000_000.0
GIGABYTE = 10**9


def write_log(run: Path, epoch: int, events: Iterable[dict[str, Any]], *, per_segment: int = 5_000) -> None:
    """Write the log of a tenure, in segments, in place of what is there."""
    rest, number = iter(events), 0
    while part := list(islice(rest, per_segment)):
        number += 1
        path = run / layout.events(epoch, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"epoch": epoch} | event) + "\n" for event in part))


def imagined(
    num_tasks: int, num_workers: int, *, started: float = STARTED, stages: tuple[str, ...] = ("features", "kernel")
) -> Iterator[dict[str, Any]]:
    """Yield what a driver would have written, with a failure now and then, and a worker that is lost."""
    dice = random.Random(num_tasks)
    names = [f"node-{number // 8:03d}:{1000 + number}" for number in range(num_workers)]
    yield {"time": started, "event": "start", "host": "head", "process": 17}
    for name in names:
        yield {
            "time": started + 1,
            "event": "worker",
            "worker": name,
            "state": "ready",
            "host": name[:8],
            "device": "cpu",
        }
    under_way = [(started + 1, worker, -1, 0.0) for worker in range(num_workers)]
    handed_out = 0
    while under_way:
        at, worker, number, seconds = under_way[0]
        if handed_out < num_tasks:
            took = dice.uniform(0.5, 1.5) * (4 if worker == 1 else 1)
            heapreplace(under_way, (at + took, worker, handed_out, took))
            handed_out += 1
        else:
            heappop(under_way)
        if number < 0:
            continue
        stage = stages[number * len(stages) // num_tasks]
        fields = {"stage": stage, "task": f"train/{number:06d}", "worker": names[worker]}
        yield {
            "time": round(at, 3),
            "event": "commit",
            "seconds": round(seconds, 4),
            "bytes": dice.randrange(4_000_000),
            "bytes_read": 8_000_000 if stage == "kernel" else 0,
            "chunks_read": dice.randrange(3) if stage == "kernel" else 0,
            "peak_bytes": GIGABYTE + dice.randrange(GIGABYTE),
            "attempt": 1,
        } | fields
        if number % max(num_tasks // 25, 1) == 7:
            text = "took longer than resources.task_seconds = 60"
            yield {"time": at, "event": "failure", "kind": "deadline", "message": text, "verdict": "again"} | fields
        if number == num_tasks // 2:
            yield {"time": at, "event": "worker", "worker": names[0], "state": "lost"}
    yield {"time": at + 2, "event": "finish", "set_aside": 0, "left_out": 0}
