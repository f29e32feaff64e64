"""Worker processes on Ray, as the driver sees them.

Ray starts processes and moves calls; it retries nothing. The driver owns attempts and commits, because Ray's own
retries reorder calls and have no limit per task. Processes belong to the driver and end with it. What they are given and
return are a few hundred bytes; the object store holds the description of the run, once per node, and is kept small.
"""

import itertools
import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, final

import ray
import ray.exceptions
from ray._private.state import state as cluster_state

from ntkpipe.configs.resources import PoolConfig
from ntkpipe.pipeline.executors.actor import Actor, Hello, Sign
from ntkpipe.pipeline.executors.asking import Asking
from ntkpipe.pipeline.executors.connection import Connection
from ntkpipe.pipeline.executors.processes import Place, oom_kills
from ntkpipe.pipeline.scheduling.workers import (
    AbstractWorkers,
    Draining,
    Finished,
    Lost,
    NotStarted,
    Ready,
    Trouble,
    WorkerEvent,
)
from ntkpipe.pipeline.stopping import leaving_compiled_code
from ntkpipe.workers.tasks import MEMORY_KIND, Task, WorkerSpec

FETCH_SECONDS: Final = 60.0
"""For an answer that is ready to arrive; it may be on a node that has just been lost."""

ASKING_SECONDS: Final = 5.0
"""Between two questions to a process that has nothing to do. Ray tells of a process that is gone only whoever waits for it."""

QUIET_SECONDS: Final = 1.0
"""A process that has said nothing for so long is asked whether it is there before it is given a task. Those that are given
one short task after another are not: a question takes the driver 50 microseconds."""

LEAVING_SECONDS: Final = 2.0
"""Between two questions for nodes that are about to leave."""

ENDING_SECONDS: Final = 3.0
"""For a process to end as Ray tells it to. Of one that is killed before, Ray says in the user's terminal that it was lost."""


@dataclass(slots=True)
class _Process:
    """A worker and the answers that are expected of it."""

    actor: Any
    hello: Any
    place: Place | None = None
    """Where it is; None before it has answered."""
    node: str = ""
    answers: deque[Any] = field(default_factory=deque)
    heard_at: float = 0.0
    """When it last answered."""
    sign: Any = None
    """The answer to whether it is there; None if it was not asked since it last answered."""
    is_leaving: bool = False
    """Whether it is known that its node is about to leave."""


@final
class RayWorkers(AbstractWorkers):
    """Worker processes on a private local Ray, or on the cluster of an address.

    Args:
        spec: Of the run.
        address: Of the cluster; ``local`` starts a private one.
        num_workers: How many there will be; the machine's cores are shared between those on a private Ray.
    """

    def __init__(self, spec: WorkerSpec, *, address: str, num_workers: int) -> None:
        self._spec = spec
        self._address = address
        self._num_workers = num_workers
        self._processes: dict[int, _Process] = {}
        self._ending: list[tuple[float, Place]] = []
        self._numbers = itertools.count()
        self._specs: dict[tuple[str, int], Any] = {}
        self._actor_class: Any = ray.remote(Actor)
        self._connection = Connection(address, num_workers)
        self._oom_kills = oom_kills()
        self._leaving: Asking | None = None
        self._has_complained = False

    @leaving_compiled_code()
    def __enter__(self) -> "RayWorkers":
        """Start or join Ray.

        Raises:
            PlanError: The address cannot be reached.
        """
        try:
            self._connection.__enter__()
            if self._address != "local":
                # Ray has no public way to learn of them. The head may take long to answer, or not know the question.
                self._leaving = Asking(cluster_state.get_draining_nodes, LEAVING_SECONDS).__enter__()
        except BaseException:
            self.__exit__()
            raise
        return self

    @leaving_compiled_code()
    def __exit__(self, *exception: object) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in list(self._processes):
            self.end(worker)
        self._specs = {}
        if self._leaving is not None:
            self._leaving.__exit__()
        try:
            self._connection.__exit__()
            while self._ending:
                self._see_off()
                time.sleep(0.01)
        finally:
            # Whoever does not wait for them leaves none behind.
            for _, place in self._ending:
                place.kill()

    def now(self) -> float:
        """Return the time of this machine."""
        return time.monotonic()

    @leaving_compiled_code()
    def start(self, pool: PoolConfig) -> int:
        """Begin to start a process with what its pool asks for."""
        device, gpus = pool.device, pool.gpus
        if device == "auto" and not ray.cluster_resources().get("GPU"):
            device, gpus = "cpu", 0.0
        if gpus is None:
            gpus = 0.0 if device == "cpu" else 1.0
        is_local = self._address == "local"
        options: dict[str, Any] = {
            "num_cpus": 0 if is_local else pool.cpus,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if not is_local:
            options["scheduling_strategy"] = "SPREAD"
        if pool.accelerator is not None:
            options["accelerator_type"] = pool.accelerator
        if pool.custom:
            options["resources"] = pool.custom
        actor = self._actor_class.options(**options).remote(self._spec_for(device, self._threads(pool)))
        worker = next(self._numbers)
        self._processes[worker] = _Process(actor, actor.hello.remote())
        return worker

    @leaving_compiled_code()
    def send(self, worker: int, task: Task, halvings: int) -> None:
        """Call a process."""
        process = self._processes[worker]
        # Should the process be lost, this answer tells whether it was there to begin with the task.
        if not process.answers and self.now() - process.heard_at > QUIET_SECONDS:
            process.sign = process.actor.sign.remote()
        process.answers.append(process.actor.run.remote(task, halvings))

    def end(self, worker: int) -> None:
        """End a process: through Ray, wherever it is, and without Ray if it is on this machine and does not hear."""
        process = self._processes.pop(worker, None)
        if process is None:
            return
        with suppress(ray.exceptions.RayError):
            ray.kill(process.actor)
        if process.place is not None:
            self._ending.append((self.now() + ENDING_SECONDS, process.place))

    @leaving_compiled_code()
    def listen(self, timeout_seconds: float) -> list[WorkerEvent]:
        """Collect the answers that are there, and look now and then for processes and nodes that are gone or about to leave."""
        until = self.now() + timeout_seconds
        while True:
            self._see_off()
            events = self._answers(max(0.0, until - self.now())) + self._leavers()
            # Most of what idle processes say is no news.
            if events or self.now() >= until:
                return events

    def _answers(self, timeout_seconds: float) -> list[WorkerEvent]:
        """Return what processes answer; nothing if the time is up or one has only said that it is there."""
        awaited = self._awaited()
        if not awaited:
            time.sleep(timeout_seconds)
            return []
        ready, others = ray.wait(list(awaited), num_returns=1, timeout=timeout_seconds)
        if others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return [event for reference in ready for event in self._hear(awaited[reference])]

    def _awaited(self) -> dict[Any, int]:
        """Return the next answer of each process that owes one; those that do not are asked for one now and then."""
        now, awaited = self.now(), {}
        for worker, process in self._processes.items():
            if process.place is None:
                awaited[process.hello] = worker
            elif process.answers:
                awaited[process.answers[0]] = worker
            else:
                if process.sign is None and now - process.heard_at > ASKING_SECONDS:
                    process.sign = process.actor.sign.remote()
                if process.sign is not None:
                    awaited[process.sign] = worker
        return awaited

    def _see_off(self) -> None:
        """Kill what was told to end and is still there."""
        now, still = self.now(), []
        for until, place in self._ending:
            if until <= now:
                place.kill()
            elif place.is_there:
                still.append((until, place))
        self._ending = still

    def _leavers(self) -> list[WorkerEvent]:
        """Return news of processes whose node is about to leave."""
        if self._leaving is None:
            return []
        events: list[WorkerEvent] = []
        if self._leaving.trouble is not None and not self._has_complained:
            self._has_complained = True
            events.append(Trouble(f"Ray does not tell which nodes are about to leave: {self._leaving.trouble}"))
        if nodes := self._leaving.answer:
            for worker, process in self._processes.items():
                if process.node in nodes and not process.is_leaving:
                    process.is_leaving = True
                    events.append(Draining(worker))
        return events

    def _hear(self, worker: int) -> list[WorkerEvent]:
        """Take an answer of a process: its first one, that to its first call, or that it is there."""
        process = self._processes[worker]
        is_new = process.place is None
        answer = process.hello if is_new else process.answers[0] if process.answers else process.sign
        try:
            found = ray.get(answer, timeout=FETCH_SECONDS)
        except (ray.exceptions.RayError, TimeoutError) as error:
            if is_new:
                return [NotStarted(worker, "worker-lost", _first_line(error))]
            kind = MEMORY_KIND if self._ran_out_of_memory(process, error) else "worker-lost"
            was_told = isinstance(error, ray.exceptions.RayActorError) and error.preempted
            had_begun = bool(process.answers) and (process.sign is None or _was_given(process.sign))
            lost = Lost(worker, kind, f"the worker process was lost: {_first_line(error)}", had_begun)
            return [Draining(worker), lost] if was_told else [lost]
        process.heard_at, process.sign = self.now(), None
        if isinstance(found, Hello):
            if found.failure is not None:
                return [NotStarted(worker, *found.failure)]
            process.place, process.node = found.place, found.node
            return [Ready(worker, f"{found.place.host}:{found.place.process}", found.device)]
        draining = [Draining(worker)] if found.is_draining else []
        if isinstance(found, Sign):
            return [*draining]
        process.answers.popleft()
        return [*draining, Finished(worker, found.value)]

    def _ran_out_of_memory(self, process: _Process, error: Exception) -> bool:
        """Return whether Ray says so, or the kernel of this machine has ended a process since it was last asked."""
        before, self._oom_kills = self._oom_kills, oom_kills()
        is_near = process.place is not None and process.place.is_near
        return isinstance(error, ray.exceptions.OutOfMemoryError) or (is_near and self._oom_kills > before)

    def _threads(self, pool: PoolConfig) -> int:
        """Return how many threads a process may use: those of the CPUs that it takes, or its share of this machine."""
        if pool.threads is not None:
            return pool.threads
        if self._address == "local":
            return max(1, len(os.sched_getaffinity(0)) // self._num_workers)
        return max(1, int(pool.cpus))

    def _spec_for(self, device: str, threads: int) -> Any:
        """Return what a process is started with, stored once for all that are alike."""
        key = (device, threads)
        if key not in self._specs:
            self._specs[key] = ray.put(replace(self._spec, device=device, threads=threads))
        return self._specs[key]


def _was_given(answer: Any) -> bool:
    """Return whether a process has given an answer."""
    try:
        ray.get(answer, timeout=0)
    except (ray.exceptions.RayError, TimeoutError):
        return False
    return True


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
