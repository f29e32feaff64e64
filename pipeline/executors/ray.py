"""Workers on Ray: the only module that knows Ray.

Ray starts processes and moves calls; it retries nothing. The driver owns attempts and commits, because Ray's own
retries reorder calls and have no limit per task. A worker that is lost or too slow is killed and replaced, and what it
had is reported as failed.
"""

import os
import shutil
import socket
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import ray
import ray.exceptions

from ntkpipe.configs.errors import PlanError
from ntkpipe.pipeline.executors.base import AbstractExecutor, Outcome, TaskError
from ntkpipe.workers.tasks import Task, TaskResult, WorkerSpec
from ntkpipe.workers.worker import Worker, describe_failure

TASKS_PER_WORKER = 2
"""In flight per worker: one computes, one waits, which hides the round trip."""

CONNECT_SECONDS = 10.0

TEMPORARY_PREFIX = "ntkpipe-ray-"


@final
class _Actor:
    """The worker process: turns results and errors into plain values."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._worker = Worker(spec)

    def run(self, task: Task) -> TaskResult | tuple[str, str]:
        """Carry out a task; an error is returned as (kind, message)."""
        try:
            return self._worker.run(task)
        except Exception as error:  # noqa: BLE001 - whatever ends a task is reported, not raised
            return describe_failure(error)


@dataclass(slots=True)
class _Slot:
    """A worker and its tasks in the order in which it gets to them."""

    actor: Any
    tasks: deque[tuple[Any, Task]] = field(default_factory=deque)
    head_since: float = 0.0
    """When the first of the tasks was started."""


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

    def __enter__(self) -> "RayExecutor":
        """Start or join Ray and start the workers.

        Raises:
            PlanError: The address cannot be reached.
        """
        if not ray.is_initialized():
            self._start_ray()
        gpus = 1 if self._spec.config.resources.device.startswith("cuda") else 0
        self._remote_class = ray.remote(_Actor).options(
            num_cpus=1 if self._address != "local" else 0, num_gpus=gpus, max_restarts=0, max_task_retries=0
        )
        self._slots = [_Slot(self._start_actor()) for _ in range(self._num_workers)]
        return self

    def __exit__(self, *exception: object) -> None:
        """End the workers, and Ray if it was started here."""
        for slot in self._slots:
            ray.kill(slot.actor)
        self._slots = []
        if self._owns_ray:
            ray.shutdown()
            self._owns_ray = False
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def capacity(self) -> int:
        """Two tasks per worker."""
        return TASKS_PER_WORKER * self._num_workers

    def submit(self, task: Task) -> None:
        """Give a task to the worker with the fewest."""
        slot = min(self._slots, key=lambda slot: len(slot.tasks))
        if not slot.tasks:
            slot.head_since = time.monotonic()
        slot.tasks.append((slot.actor.run.remote(task), task))

    def wait(self, timeout_seconds: float) -> list[Outcome]:
        """Collect what is ready, and replace workers that died or took too long."""
        heads = {slot.tasks[0][0]: slot for slot in self._slots if slot.tasks}
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=timeout_seconds)
        outcomes: list[Outcome] = []
        for reference in ready:
            slot = heads[reference]
            task = slot.tasks[0][1]
            try:
                value = ray.get(reference)
            except ray.exceptions.RayError as error:
                text = str(error).strip().splitlines()
                reason = text[0] if text else type(error).__name__
                outcomes += self._replace(slot, TaskError("worker-lost", f"the worker process was lost: {reason}"))
                continue
            slot.tasks.popleft()
            slot.head_since = time.monotonic()
            if isinstance(value, TaskResult):
                outcomes.append(Outcome(task, result=value))
            else:
                outcomes.append(Outcome(task, error=TaskError(*value)))
        for slot in self._slots:
            if slot.tasks and time.monotonic() - slot.head_since > self._task_seconds:
                late = TaskError("deadline", f"took longer than resources.task_seconds = {self._task_seconds:g}")
                outcomes += self._replace(slot, late)
        return outcomes

    def _replace(self, slot: _Slot, error: TaskError) -> list[Outcome]:
        """Start a new worker in place of one that is lost, and report its tasks; only the first had been started."""
        outcomes = [
            Outcome(task, error=error if position == 0 else TaskError(error.kind, error.message, counts=False))
            for position, (_, task) in enumerate(slot.tasks)
        ]
        ray.kill(slot.actor)
        slot.tasks.clear()
        slot.actor = self._start_actor()
        return outcomes

    def _start_actor(self) -> Any:
        return self._remote_class.remote(self._spec)

    def _start_ray(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
        if self._address == "local":
            _remove_stale_folders()
            self._temporary = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-"))
            options |= {"num_cpus": self._num_workers, "_temp_dir": str(self._temporary)}
        else:
            _check_reachable(self._address)
        try:
            ray.init(address=self._address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
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


def _remove_stale_folders() -> None:
    """Remove what drivers that were killed have left in the temporary folder."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}*"):
        process = folder.name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc").exists():
            shutil.rmtree(folder, ignore_errors=True)
