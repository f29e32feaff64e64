"""The worker process on Ray: what it is asked, and the plain values that it answers with."""

import signal
from dataclasses import dataclass
from types import FrameType
from typing import final

import ray

from ntkpipe.pipeline.executors.base import NOT_STARTED
from ntkpipe.pipeline.executors.processes import Place
from ntkpipe.pipeline.scheduling.workers import Failed
from ntkpipe.workers.tasks import Task, TaskResult, WorkerSpec
from ntkpipe.workers.worker import Worker, describe_failure


@dataclass(frozen=True, slots=True)
class Hello:
    """The first answer of a worker process."""

    place: Place
    node: str
    device: str
    failure: Failed | None
    """What kept it from starting."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attempt at a task ended."""

    value: TaskResult | Failed
    is_draining: bool
    """Whether the process was told to end, and takes no other task."""


@dataclass(frozen=True, slots=True)
class Sign:
    """A process is there."""

    is_draining: bool
    """Whether it was told to end, and takes no task."""


@final
class Actor:
    """The worker process: turns results and errors into plain values, and finishes its task when it is told to end."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker: Worker | None = None
        self._device = ""
        self._failure: Failed | None = None
        self._is_draining = False
        signal.signal(signal.SIGTERM, self._drain)
        try:
            worker = Worker(spec)
            self._device, self._worker = worker.device, worker
        except Exception as error:  # noqa: BLE001 - whatever keeps a worker from starting is reported, not raised
            self._failure = describe_failure(error)

    def hello(self) -> Hello:
        """Say where the process is, and whether it has started."""
        return Hello(Place.here(), ray.get_runtime_context().get_node_id(), self._device, self._failure)

    def sign(self) -> Sign:
        """Say that the process is there."""
        return Sign(self._is_draining)

    def run(self, task: Task, halvings: int) -> Answer:
        """Carry out a task; an error is returned as (kind, message)."""
        if self._worker is None or self._is_draining:
            told = (NOT_STARTED, "the worker was told to end")
            return Answer(self._failure or told, self._is_draining)
        try:
            value: TaskResult | Failed = self._worker.run(task, halvings)
        except Exception as error:  # noqa: BLE001 - whatever ends a task is reported, not raised
            value = describe_failure(error)
        return Answer(value, self._is_draining)

    def _drain(self, number: int, frame: FrameType | None) -> None:
        """Handle a SIGTERM."""
        self._is_draining = True
