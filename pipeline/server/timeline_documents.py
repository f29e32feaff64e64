"""The documents of a timeline."""

from pydantic import BaseModel, Field


class StageItem(BaseModel):
    """A stage on the time axis; times are in seconds from its beginning."""

    stage: str
    start: float
    stop: float
    seconds: float
    tasks: int
    bytes: float
    bytes_read: float
    failures: int
    mean_seconds: float
    median_seconds: float
    longest_seconds: float


class WorkerItem(BaseModel):
    """A worker on the time axis."""

    name: str
    tasks: int
    busy_seconds: float
    start: float
    stop: float
    failures: int
    num_bytes: float
    peak_bytes: float
    device: str
    state: str
    by_stage: dict[str, tuple[int, float]] = Field(description="Tasks and seconds.")


class SpanItem(BaseModel):
    """A task on the time axis."""

    worker: str
    stage: str
    task: str
    start: float
    stop: float


class TenureItem(BaseModel):
    """One driver's time with the run."""

    epoch: int
    host: str
    process: str
    clock_at: float
    start: float
    stop: float
    gap_seconds: float
    ending: str
    commits: int
    failures: int


class FaultItem(BaseModel):
    """A failed attempt, or a worker that was lost."""

    epoch: int
    at: float
    stage: str
    task: str
    kind: str
    message: str
    verdict: str
    worker: str


class Bins(BaseModel):
    """Amounts over time, by stage."""

    width: float = Field(description="Of a bin, in seconds.")
    number: int
    tasks: dict[str, list[float]]
    bytes: dict[str, list[float]]


class Timeline(BaseModel):
    """Who worked on what, and when."""

    seconds: float
    stages: list[StageItem]
    workers: list[WorkerItem]
    spans: list[SpanItem] | None = Field(description="Every task; null when there are more than 2,000.")
    tenures: list[TenureItem]
    faults: list[FaultItem]
    bins: Bins
    damaged: list[str]
