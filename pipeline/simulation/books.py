"""What the driver of a simulation writes: nothing is stored, all is counted."""

import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO, final

from ntkpipe.configs.errors import PlanError
from ntkpipe.storage.ledger import COMMITS_AT_ONCE
from ntkpipe.storage.records import Failure, Receipt

EPOCH = 1


@final
class SimulatedLedger:
    """Remembers what was committed, and lets the driver take its time for it.

    Args:
        spend: Lets virtual time pass.
        task_seconds: Of the driver, for everything but the receipt that it does for a task.
        receipt_seconds: Until the store has a receipt, or the record of a failure; several receipts are under way at once.
    """

    def __init__(self, spend: Callable[[float], None], task_seconds: float, receipt_seconds: float) -> None:
        self._spend = spend
        self._task_seconds = task_seconds
        self._receipt_seconds = receipt_seconds
        self._done: dict[str, set[str]] = {}
        self.failures: Counter[str] = Counter()
        self.num_committed = 0

    def committed(self, stage: str) -> frozenset[str]:
        """Return the ids of a stage's finished tasks."""
        return frozenset(self._done.get(stage, ()))

    def commit_at_once(self, receipts: Sequence[Receipt]) -> None:
        """Finish tasks.

        Raises:
            PlanError: One of them is finished already, which no driver may try.
        """
        for receipt in receipts:
            done = self._done.setdefault(receipt.stage, set())
            if receipt.task in done:
                raise PlanError(
                    f"simulated {receipt.stage} task {receipt.task} is committed twice; please report this."
                )
            done.add(receipt.task)
        self.num_committed += len(receipts)
        rounds = -(-len(receipts) // COMMITS_AT_ONCE)
        self._spend(len(receipts) * self._task_seconds + rounds * self._receipt_seconds)

    def record_failure(self, failure: Failure) -> None:
        """Count what went wrong."""
        self.failures[failure.verdict] += 1
        self._spend(self._receipt_seconds)

    def compact(self, epoch: int, check: Callable[[], None]) -> None:
        """Do nothing: compaction is not simulated."""


@final
class SimulatedTenure:
    """A lock that nobody else wants; to know that, the driver asks the store.

    Args:
        spend: Lets virtual time pass.
        request_seconds: Until the store has answered.
    """

    def __init__(self, spend: Callable[[float], None], request_seconds: float) -> None:
        self._spend = spend
        self._request_seconds = request_seconds

    @property
    def epoch(self) -> int:
        """The first one."""
        return EPOCH

    def check(self) -> None:
        """Ask, and go on."""
        self._spend(self._request_seconds)

    def look(self) -> None:
        """Ask, and go on."""
        self._spend(self._request_seconds)


@dataclass(slots=True)
class StageTimes:
    """When a stage was worked on."""

    num_tasks: int = 0
    begun_at: float = float("inf")
    """When its first task began, by the time of its worker."""
    ended_at: float = 0.0
    """When its last task was committed."""
    task_seconds: "array[float]" = field(default_factory=lambda: array("d"))

    @property
    def seconds(self) -> float:
        """From one to the other; stages may overlap."""
        return max(0.0, self.ended_at - self.begun_at)

    def quantile(self, share: float) -> float:
        """Return what a share of the tasks did not exceed; 0 without tasks."""
        if not self.task_seconds:
            return 0.0
        ordered = sorted(self.task_seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@final
class SimulatedLog:
    """Adds up events, and writes them as the lines of a run's log if there is a file for them.

    Args:
        now: The virtual time.
        lines: A file for the events; their times are seconds since the run began.
    """

    def __init__(self, now: Callable[[], float], lines: TextIO | None = None) -> None:
        self._now = now
        self._lines = lines
        self.stages: dict[str, StageTimes] = {}
        self.workers: Counter[str] = Counter()
        self.holes = 0

    def begin(self, stage: str) -> None:
        """Note that a stage is worked on, though nothing of it is about to be committed."""
        times = self._of(stage)
        times.begun_at = min(times.begun_at, self._now())

    def add(self, event: str, **fields: Any) -> None:
        """Take in an event."""
        if event == "commit":
            self._commit(fields["stage"], fields["seconds"])
        elif event == "worker":
            self.workers[fields["state"]] += 1
        elif event == "finish":
            self.holes = fields["set_aside"] + fields["left_out"]
        if self._lines is not None:
            head = {"time": round(self._now(), 3), "epoch": EPOCH, "event": event}
            self._lines.write(json.dumps(head | fields) + "\n")

    def _commit(self, stage: str, seconds: float) -> None:
        times, now = self._of(stage), self._now()
        times.num_tasks += 1
        times.begun_at = min(times.begun_at, now - seconds)
        times.ended_at = now
        times.task_seconds.append(seconds)

    def _of(self, stage: str) -> StageTimes:
        return self.stages.setdefault(stage, StageTimes())
