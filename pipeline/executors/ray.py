"""Workers on Ray: the only module that knows Ray.

Ray starts processes and moves calls; it retries nothing. The driver owns attempts and commits, because Ray's own
retries reorder calls and have no limit per task. A worker that is lost or too slow is killed and replaced, and what it
had is reported as failed. A worker is given tasks once it has answered: a process that never starts, or that a cluster
has no room for, holds nothing up as long as there is another one.
"""

import os
import shutil
import socket
import tempfile
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import ray
import ray.exceptions

from ntkpipe.configs.errors import PlanError, error_of_kind
from ntkpipe.pipeline.executors.base import AbstractExecutor, Outcome, TaskError, attempt_error
from ntkpipe.pipeline.executors.processes import (
    Place,
    deferring_signals,
    keeping_handler,
    oom_kills,
    remove_stale_folders,
)
from ntkpipe.workers.tasks import MEMORY_KIND, Task, TaskResult, WorkerSpec
from ntkpipe.workers.worker import Worker, describe_failure

TASKS_PER_WORKER = 2
"""In flight per worker: one computes, one waits, which hides the round trip."""

CONNECT_SECONDS = 10.0

FETCH_SECONDS = 60.0
"""For an answer that is ready to arrive; it may be on a node that has just been lost."""

MAX_STARTS = 3
"""In a row that fail, before a worker is given up."""

TEMPORARY_PREFIX = "ntkpipe-ray-"


@final
class _Actor:
    """The worker process: turns results and errors into plain values."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker: Worker | None = None
        self._failure = ("exception", "")
        try:
            self._worker = Worker(spec)
        except Exception as error:  # noqa: BLE001 - whatever keeps a worker from starting is reported, not raised
            self._failure = describe_failure(error)

    def hello(self) -> Place | tuple[str, str]:
        """Say where the process is; an error that kept it from starting is returned as (kind, message)."""
        return Place.here() if self._worker is not None else self._failure

    def run(self, task: Task, halvings: int) -> TaskResult | tuple[str, str]:
        """Carry out a task; an error is returned as (kind, message)."""
        if self._worker is None:
            return self._failure
        try:
            return self._worker.run(task, halvings)
        except Exception as error:  # noqa: BLE001 - whatever ends a task is reported, not raised
            return describe_failure(error)


@dataclass(frozen=True, slots=True)
class _Call:
    """An attempt at a task that a worker has been given."""

    answer: Any
    task: Task
    halvings: int


@dataclass(slots=True)
class _Slot:
    """A worker and its tasks in the order in which it gets to them."""

    actor: Any
    hello: Any
    """Its first answer."""
    since: float = field(default_factory=time.monotonic)
    """When it was started, or when the first of its tasks was."""
    place: Place | None = None
    """Where it is; None before it has answered."""
    calls: deque[_Call] = field(default_factory=deque)
    failed_starts: int = 0


@final
class RayExecutor(AbstractExecutor):
    """Worker processes on a private local Ray, or on the cluster of an address.

    A Ray that is already running in this process is borrowed and left running.
    """

    def __init__(self, spec: WorkerSpec, *, address: str, num_workers: int, task_seconds: float) -> None:
        self._spec = spec
        self._address = address
        self._num_workers = num_workers
        self._task_seconds = task_seconds
        self._slots: list[_Slot] = []
        self._owns_ray = False
        self._temporary: Path | None = None
        self._remote_class: Any = None
        self._oom_kills = oom_kills()

    def __enter__(self) -> "RayExecutor":
        """Start or join Ray and begin to start the workers.

        Raises:
            PlanError: The address cannot be reached.
        """
        try:
            if not ray.is_initialized():
                self._start_ray()
            gpus = 1 if self._spec.config.resources.device.startswith("cuda") else 0
            self._remote_class = ray.remote(_Actor).options(
                num_cpus=1 if self._address != "local" else 0, num_gpus=gpus, max_restarts=0, max_task_retries=0
            )
            for _ in range(self._num_workers):
                self._slots.append(self._start_worker())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        """End the workers, and Ray if it was started here."""
        for slot in self._slots:
            _end_worker(slot)
        self._slots = []
        if self._owns_ray:
            # Ray takes every handler of SIGTERM away as it ends, below what Python knows of.
            with deferring_signals():
                ray.shutdown()
            self._owns_ray = False
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def capacity(self) -> int:
        """Two tasks per worker that has answered."""
        return TASKS_PER_WORKER * sum(slot.place is not None for slot in self._slots)

    def submit(self, task: Task, halvings: int = 0) -> None:
        """Give a task to the worker with the fewest; there must be one that has answered."""
        slot = min((slot for slot in self._slots if slot.place is not None), key=lambda slot: len(slot.calls))
        if not slot.calls:
            slot.since = time.monotonic()
        slot.calls.append(_Call(slot.actor.run.remote(task, halvings), task, halvings))

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Collect what is ready, and replace workers that died or took too long.

        Raises:
            PlanError: No worker can be started.
            NtkPipeError: What kept a worker from starting.
        """
        awaited = {slot.calls[0].answer: slot for slot in self._slots if slot.calls}
        awaited |= {slot.hello: slot for slot in self._slots if slot.place is None}
        outcomes: list[Outcome] = []
        ready, others = ray.wait(list(awaited), num_returns=1, timeout=timeout_seconds) if awaited else ([], [])
        if others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        for reference in ready:
            slot = awaited[reference]
            if slot.place is None:
                self._welcome(slot)
            else:
                outcomes += self._collect(slot)
        for slot in list(self._slots):
            if time.monotonic() - slot.since <= self._task_seconds:
                continue
            late = f"took longer than resources.task_seconds = {self._task_seconds:g}"
            if slot.place is None:
                self._start_again(slot, f"its process {late} to start; is there room for it?")
            elif slot.calls:
                outcomes += self._replace(slot, "deadline", late)
        return outcomes

    def _welcome(self, slot: _Slot) -> None:
        """Take the first answer of a worker."""
        try:
            found = ray.get(slot.hello, timeout=FETCH_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:
            self._start_again(slot, _first_line(error))
            return
        if isinstance(found, Place):
            slot.place, slot.failed_starts, slot.since = found, 0, time.monotonic()
            return
        kind, message = found
        if kind not in ("exception", MEMORY_KIND):
            raise error_of_kind(kind, message)
        self._start_again(slot, message)

    def _start_again(self, slot: _Slot, reason: str) -> None:
        """Start a worker afresh that has not started, a few times.

        Raises:
            PlanError: It was the last one.
        """
        _end_worker(slot)
        self._slots.remove(slot)
        if slot.failed_starts + 1 < MAX_STARTS:
            self._slots.append(self._start_worker(slot.failed_starts + 1))
        elif not self._slots:
            raise PlanError(
                f"no worker could be started in {MAX_STARTS} tries, the last one because {reason}. Check "
                "resources.workers, the free CPUs and GPUs of the cluster, and that its nodes can import ntkpipe."
            )

    def _collect(self, slot: _Slot) -> list[Outcome]:
        """Return how the first task of a worker ended, and of one that is lost all the others."""
        call = slot.calls[0]
        try:
            value = ray.get(call.answer, timeout=FETCH_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:
            kind = MEMORY_KIND if self._ran_out_of_memory(slot, error) else "worker-lost"
            return self._replace(slot, kind, f"the worker process was lost: {_first_line(error)}")
        slot.calls.popleft()
        slot.since = time.monotonic()
        if isinstance(value, TaskResult):
            return [Outcome(call.task, result=value)]
        return [Outcome(call.task, error=attempt_error(self._spec, call.task, call.halvings, *value))]

    def _ran_out_of_memory(self, slot: _Slot, error: Exception) -> bool:
        """Return whether Ray says so, or the kernel of this machine has ended a process since it was last asked."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        is_near = slot.place is not None and slot.place.is_near
        return isinstance(error, ray.exceptions.OutOfMemoryError) or (is_near and self._oom_kills > before)

    def _replace(self, slot: _Slot, kind: str, message: str) -> list[Outcome]:
        """Start a new worker in place of one that is lost, and report its tasks; only the first had been started."""
        first, *others = slot.calls
        outcomes = [Outcome(first.task, error=attempt_error(self._spec, first.task, first.halvings, kind, message))]
        outcomes += [Outcome(call.task, error=TaskError("not-started", message, counts=False)) for call in others]
        _end_worker(slot)
        self._slots[self._slots.index(slot)] = self._start_worker()
        return outcomes

    def _start_worker(self, failed_starts: int = 0) -> _Slot:
        actor = self._remote_class.remote(self._spec)
        return _Slot(actor, actor.hello.remote(), failed_starts=failed_starts)

    def _start_ray(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        if self._address == "local":
            remove_stale_folders(TEMPORARY_PREFIX)
            self._temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-"))
            options |= {"num_cpus": self._num_workers, "_temp_dir": str(self._temporary)}
        else:
            _check_reachable(self._address)
        try:
            with keeping_handler():
                ray.init(address=self._address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise PlanError(
                f"Ray at {self._address!r} cannot be reached or started: {error}. Check resources.address, and "
                "RAY_AUTH_TOKEN for a cluster with authentication."
            ) from None
        self._owns_ray = True


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody listens; Ray would end the whole process after a long wait.

    Raises:
        PlanError: Names the address.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise PlanError(
            f"Ray at {address!r} cannot be reached: {error}. Check resources.address, and that the head node is running."
        ) from None


def _end_worker(slot: _Slot) -> None:
    """End a worker: through Ray, wherever it is, and without Ray if it is on this machine."""
    with suppress(ray.exceptions.RayError):
        ray.kill(slot.actor)
    if slot.place is not None:
        slot.place.kill()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
