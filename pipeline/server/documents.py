"""The documents that the service answers with, as its description tells them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

Number = float | None
"""None where it is not finite."""


class Health(BaseModel):
    """The service answers."""

    status: Literal["ok"] = "ok"


class StageCount(BaseModel):
    """Progress of a stage."""

    stage: str
    done: int
    total: int
    set_aside: int
    left_out: int


class RunItem(BaseModel):
    """A run in a list."""

    run: str = Field(description="Its name below the root.")
    name: str = Field("", description="That its configuration gives it.")
    run_id: str = ""
    state: Literal["finished", "running", "interrupted", "incomplete", "unreadable"]
    created_at: float | None = Field(None, description="Seconds since 1970.")
    stages: list[StageCount] = []
    num_samples: dict[str, int] = Field({}, description="By split.")
    kernels: list[str] = Field([], description="NAME, or NAME@MEMBER.")
    problem: str | None = Field(None, description="Why it cannot be read.")


class RunList(BaseModel):
    """A page of the runs below the root."""

    runs: list[RunItem]
    next: str | None = Field(description="The last name of this page, to be given as `after`; null at the end.")


class ManifestDocument(BaseModel):
    """What a run is."""

    run: str
    manifest: dict[str, Any] = Field(description="The run's own document, run.json.")


class StageStatusDocument(StageCount):
    """Progress and speed of a stage."""

    tasks_per_second: float | None
    bytes_per_second: float | None
    seconds_left: float | None
    failed_attempts: int


class StatusDocument(BaseModel):
    """How far a run is."""

    url: str = Field(description="The name of the run.")
    name: str
    run_id: str
    state: Literal["finished", "running", "interrupted", "incomplete"]
    stages: list[StageStatusDocument]
    epoch: int
    owner: str | None
    silent_seconds: float | None
    solves: dict[str, str]
    failures: list[str]
    workers_ready: int | None
    workers_wanted: int | None
    told_seconds: float | None


class EventList(BaseModel):
    """A page of a run's events, oldest first."""

    events: list[dict[str, Any]]
    next: int = Field(description="To be given as `after`: what was seen so far.")


class FailureItem(BaseModel):
    """A failed attempt at a task."""

    stage: str
    task: str
    kind: str
    message: str
    verdict: Literal["again", "aside", "left-out", "end"]
    attempt: int
    epoch: int
    failed_at: float


class FailureList(BaseModel):
    """Failed attempts, the latest thousand, oldest first."""

    failures: list[FailureItem]


class ReceiptItem(BaseModel):
    """A finished task in a list."""

    task: str
    seconds: float
    worker: str
    epoch: int
    attempt: int
    committed_at: float
    num_bytes: int
    chunks: int


class ReceiptList(BaseModel):
    """A page of a stage's receipts, by task."""

    receipts: list[ReceiptItem]
    next: str | None = Field(description="The last task of this page, to be given as `after`; null at the end.")


class IdList(BaseModel):
    """Sample ids of a split."""

    ids: list[str]
    num_samples: int


class ArrayDocument(BaseModel):
    """Values with their ids."""

    values: Any = Field(description="Nested lists; NaN and infinity are null.")
    dtype: str
    shape: list[int]
    row_ids: list[str] | None = None
    column_ids: list[str] | None = None


class NeighborItem(BaseModel):
    """A training sample."""

    id: str
    position: int
    value: Number
    label: Any = None


class SampleNeighbors(BaseModel):
    """A sample and its neighbours."""

    sample: str
    position: int
    neighbors: list[NeighborItem]


class NeighborList(BaseModel):
    """Neighbours of some samples, in the order in which they were asked for."""

    neighbors: list[SampleNeighbors]


class SpectrumDocument(BaseModel):
    """Eigenvalues, largest first."""

    eigenvalues: list[Number]
    label_energy: list[Number] | None
    num_samples: int


class ClassShare(BaseModel):
    """What the training samples of a class contribute to a prediction."""

    label: int
    num_samples: int
    positive: Number
    negative: Number


class Contribution(BaseModel):
    """What a training sample contributes to a prediction."""

    id: str
    position: int
    label: Any = None
    value: Number


class AttributionSummary(BaseModel):
    """Where a prediction comes from."""

    sample: str
    position: int
    target: int
    prediction: Number = Field(description="As it is stored.")
    total: Number = Field(description="The sum of all contributions: the prediction, but for rounding.")
    by_class: list[ClassShare]
    helpful: list[Contribution]
    harmful: list[Contribution]


class FileList(BaseModel):
    """What an analysis has left."""

    files: list[str]
