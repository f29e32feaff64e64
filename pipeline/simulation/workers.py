"""Workers that compute nothing: they take as long as predicted, on nodes that come and go, in a time of their own."""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from ntkpipe.configs.cluster import StorageConfig
from ntkpipe.configs.described import Group
from ntkpipe.configs.resources import PoolConfig
from ntkpipe.pipeline.scheduling.workers import (
    AbstractWorkers,
    Draining,
    Finished,
    Lost,
    NotStarted,
    Ready,
    WorkerEvent,
)
from ntkpipe.pipeline.simulation.bandwidth import Moved
from ntkpipe.pipeline.simulation.chance import Chance, Draws
from ntkpipe.pipeline.simulation.labour import Habits, Labour, Process, TaskTimes
from ntkpipe.pipeline.simulation.machines import Machines, Node
from ntkpipe.pipeline.simulation.memory import KeptSides
from ntkpipe.workers.tasks import Task

Heard = Ready | NotStarted | Finished | Draining | Lost
"""What a simulated worker makes itself heard with."""

GONE: Final = "the node of the worker was lost (simulated)"


def pool_of(group: Group, nodes: int | None = None) -> PoolConfig:
    """Return the workers of a group, which are bound to its nodes.

    Args:
        group: Of a described cluster.
        nodes: How many there will be, if not those of the beginning.
    """
    workers = (group.nodes if nodes is None else nodes) * group.workers_per_node
    device = "cpu" if group.device.kind == "cpu" else "cuda"
    return PoolConfig(workers=workers, device=device, custom={group.name: 1.0})


@final
class SimulatedWorkers(AbstractWorkers):
    """Workers of a described cluster, in virtual time.

    The driver is one process: while it commits a task, :meth:`spend`, the workers go on.

    Args:
        machines: Nodes and the room on them.
        storage: Of the run.
        times: How long tasks take, by group.
        habits: Of all workers.
        chance: What becomes of nodes.
        draws: Random numbers.
    """

    def __init__(
        self,
        machines: Machines,
        storage: StorageConfig,
        times: Mapping[str, TaskTimes],
        habits: Habits,
        chance: Chance,
        draws: Draws,
    ) -> None:
        self._machines = machines
        self._times = times
        self._habits = habits
        self._chance = chance
        self._now = 0.0
        self._order = itertools.count()
        self._numbers = itertools.count()
        self._ahead: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._heard: list[Heard] = []
        self._processes: dict[int, Process] = {}
        self._waiting: dict[str, deque[Process]] = {name: deque() for name in machines.groups}
        self._handed_out_at = 0.0
        self.labour = Labour(storage, habits, draws)
        self.driver_seconds = 0.0

    def __enter__(self) -> "SimulatedWorkers":
        """Let nodes come, and plan what becomes of them."""
        for node in self._machines.begin():
            self._plan_end(node)
        for join in self._chance.joins:
            for _ in range(join.nodes):
                self._at(join.at, self._join, join.group)
        return self

    def __exit__(self, *exception: object) -> None:
        """End the workers."""
        self.close_stage()
        for worker in list(self._processes):
            self.end(worker)

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def spend(self, seconds: float) -> None:
        """Let the driver be busy with something while the workers go on."""
        self.driver_seconds += seconds
        until = self._now + seconds
        while self._ahead and self._ahead[0][0] <= until:
            self._step()
        self._now = until

    def start(self, pool: PoolConfig) -> int:
        """Start a worker on a node of its group, as soon as there is room."""
        (name,) = pool.custom
        kept = KeptSides(self._habits.kept_sides)
        number = next(self._numbers)
        process = Process(number, self._machines.groups[name], self._times[name], kept, self._now)
        self._processes[number] = process
        node = self._machines.take(name)
        if node is None:
            self._waiting[name].append(process)
        else:
            self._place(process, node)
        return number

    def send(self, worker: int, task: Task, halvings: int) -> None:
        """Give a worker a task."""
        process = self._processes[worker]
        process.tasks.append(task)
        self._handed_out_at = self._now
        if len(process.tasks) == 1 and not process.is_gone:
            self.labour.account.waiting += self._now - process.since
            self._begin(process)

    def end(self, worker: int) -> None:
        """End a worker; what it was doing is lost."""
        process = self._processes.pop(worker)
        if process.node is None:
            self._waiting[process.group.name].remove(process)
        if not process.is_gone:
            self._leave(process)
            if process.node is not None:
                self._machines.give_back(process.node)
                self._place_next(process.group.name)

    def listen(self, timeout_seconds: float) -> list[WorkerEvent]:
        """Let time pass until something happens that the driver can hear."""
        until = self._now + timeout_seconds
        while not self._heard and self._ahead and self._ahead[0][0] <= until:
            self._step()
        while self._ahead and self._ahead[0][0] <= self._now:
            self._step()
        if not self._heard:
            self._now = until
        heard, self._heard = self._heard, []
        return [event for event in heard if event.worker in self._processes]

    def close_stage(self) -> None:
        """Count the time of workers without a task since the last one was handed out: there was none left for them."""
        for process in self._processes.values():
            if process.is_ready and not process.is_gone and not process.tasks:
                before = max(0.0, self._handed_out_at - process.since)
                self.labour.account.waiting += before
                self.labour.account.tail += self._now - process.since - before
                process.since = self._now

    @property
    def storage_shares(self) -> dict[str, float]:
        """Return for what share of the time reads, writes and requests were at the storage's limits."""
        shared, now = self.labour.shared, self._now or 1.0
        servers = {"reads": shared.reads, "writes": shared.writes, "requests": shared.requests}
        return {name: server.units / server.rate / now for name, server in servers.items()}

    @property
    def worker_seconds(self) -> float:
        """For how long there was room for workers, summed over it."""
        return self._machines.worker_seconds(self._now)

    def _at(self, time: float, happen: Callable[[Any], None], whom: Any) -> None:
        heapq.heappush(self._ahead, (time, next(self._order), happen, whom))

    def _step(self) -> None:
        """Go to the next instant at which something happens."""
        time, _, happen, whom = heapq.heappop(self._ahead)
        self._now = max(self._now, time)
        happen(whom)

    def _plan_end(self, node: Node) -> None:
        if node.lost_at == math.inf:
            return
        if self._chance.notice_seconds:
            self._at(max(self._now, node.lost_at - self._chance.notice_seconds), self._give_notice, node)
        self._at(node.lost_at, self._lose, node)

    def _join(self, name: str) -> None:
        node = self._machines.join(name, self._now)
        self._plan_end(node)
        for _ in range(node.group.workers_per_node):
            self._place_next(name)

    def _give_notice(self, node: Node) -> None:
        node.is_taking = False
        self._heard += [Draining(process.number) for process in self._processes.values() if process.node is node]
        self._at(self._now + node.group.start_seconds, self._join, node.group.name)

    def _lose(self, node: Node) -> None:
        """Take a node away; that it is gone is noticed later."""
        if node.is_taking:
            self._at(self._now + node.group.start_seconds, self._join, node.group.name)
        self._machines.lose(node, self._now)
        for process in self._processes.values():
            if process.node is node:
                self._leave(process)
                self._at(self._now + self._chance.lost_seconds, self._notice, (process, bool(process.tasks)))

    def _notice(self, lost: tuple[Process, bool]) -> None:
        """Tell that a process is gone, which may have been given its first task since then."""
        process, had_begun = lost
        if process.is_ready:
            self._heard.append(Lost(process.number, "worker-lost", GONE, had_begun))
        else:
            self._heard.append(NotStarted(process.number, "worker-lost", GONE))

    def _place_next(self, name: str) -> None:
        waiting = self._waiting[name]
        if waiting and (node := self._machines.take(name)) is not None:
            self._place(waiting.popleft(), node)

    def _place(self, process: Process, node: Node) -> None:
        process.node, process.since = node, self._now
        process.label = f"{node.group.name}-{node.number}:{process.number}"
        self._at(self._now + self._habits.start_seconds, self._get_ready, process)

    def _get_ready(self, process: Process) -> None:
        if not process.is_gone:
            self.labour.account.starting += self._now - process.since
            process.is_ready, process.since = True, self._now
            self._heard.append(Ready(process.number, process.label, process.group.device_name))

    def _leave(self, process: Process) -> None:
        process.is_gone = True
        self.labour.leave(process, self._now)

    def _begin(self, process: Process) -> None:
        self._at(self.labour.begin(process, self._now), self._write, process)

    def _write(self, process: Process) -> None:
        """A task has been computed."""
        if not process.is_gone:
            written = self.labour.write(process, self._now)
            self._at(written.at, self._finish, (process, written))

    def _finish(self, finished: tuple[Process, Moved]) -> None:
        """What a task has computed is stored."""
        process, written = finished
        if not process.is_gone:
            result = self.labour.finish(process, self._now, written)
            self._heard.append(Finished(process.number, result))
            if process.tasks:
                self._begin(process)
