"""Simulates a run: the real driver and fleet, the tasks of the real plan, and workers that only take their time.

Analyses, and what one worker does of a solve, are simulated as the whole tasks that the plan prices.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TextIO, final

from ntkpipe.configs.calibration import Calibration
from ntkpipe.configs.described import Cluster
from ntkpipe.configs.errors import NtkPipeError
from ntkpipe.configs.resources import PoolConfig
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.drive import Driver
from ntkpipe.pipeline.events import Silent
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.prediction.durations import durations_on
from ntkpipe.pipeline.prediction.workload import Workload
from ntkpipe.pipeline.rounds import take_rounds
from ntkpipe.pipeline.scheduling.blocks import planned_reads, strip_height
from ntkpipe.pipeline.scheduling.fleet import Fleet
from ntkpipe.pipeline.simulation.account import Account
from ntkpipe.pipeline.simulation.books import SimulatedLedger, SimulatedLog, SimulatedTenure, StageTimes
from ntkpipe.pipeline.simulation.chance import Chance, Draws
from ntkpipe.pipeline.simulation.labour import Habits, TaskTimes
from ntkpipe.pipeline.simulation.machines import Machines
from ntkpipe.pipeline.simulation.workers import SimulatedWorkers, pool_of
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage.kernel import KERNEL_STAGE
from ntkpipe.storage.records import Geometry
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.storage.solver_state import SolveProgress
from ntkpipe.workers.passes import PassPlan
from ntkpipe.workers.solvers.sharing import Rounds
from ntkpipe.workers.tasks import SharedSolveTask, WorkerSpec

SATURATED: Final = 0.8
"""Share of a run's time from which on something that is busy for so long holds everything up."""

SHARED: Final = {
    "driver": "the driver",
    "reads": "storage bandwidth",
    "writes": "storage bandwidth",
    "requests": "requests to the storage",
}


@dataclass(frozen=True, slots=True)
class Simulated:
    """How a run went."""

    cluster: Cluster
    seconds: float
    """From its beginning, with its nodes there and its workers not yet started, to its end."""
    account: Account
    worker_seconds: float
    """For how long there was room for workers, summed over it."""
    driver_seconds: float
    """For how long the driver was busy."""
    stages: dict[str, StageTimes]
    shared_seconds: float
    """Of workers, in rounds of shared solves: what is done there is no task that is committed."""
    num_tasks: int
    """That were committed."""
    num_retries: int
    """Failed attempts after which a task was tried again."""
    num_lost: int
    """Attempts that were under way when their worker was lost: what they had done was done again."""
    num_nodes_lost: int
    bytes_read: int
    bytes_written: int
    requests: float
    sides_read: int
    """Rows and columns of kernel blocks that workers read."""
    sides_planned: int
    """Rows and columns that are read if every strip of blocks stays with one worker."""
    storage_shares: dict[str, float]
    """Share of the time for which bytes read, bytes written and requests were at what the storage can do at the most."""
    price: float
    """Of nodes and of requests; 0 where a node's price is not known, as requests alone would be taken for all of it."""
    failure: str
    """What ended the run before its end; empty if it was finished."""
    holes: int
    """Tasks that it went without."""

    @property
    def utilisation(self) -> float:
        """Share of the workers' time that they spent on tasks that were finished."""
        return self.account.busy / self.worker_seconds if self.worker_seconds else 0.0

    @property
    def main_stage(self) -> str:
        """The stage that took workers the longest, rounds of shared solves included; empty if no task was finished."""

        def seconds(name: str) -> float:
            return sum(self.stages[name].task_seconds) + (self.shared_seconds if name == SOLVE_STAGE else 0.0)

        return max(self.stages, key=seconds, default="")

    @property
    def driver_share(self) -> float:
        """Share of the time for which the driver was busy."""
        return self.driver_seconds / self.seconds if self.seconds else 0.0

    @property
    def bottleneck(self) -> str:
        """What the run would be faster without, in words: what is shared by all and busy all the time, or what took most."""
        if self.failure:
            return "errors"
        busy = {"driver": self.driver_share, **self.storage_shares}
        name = max(busy, key=lambda name: busy[name])
        return SHARED[name] if busy[name] >= SATURATED else self.account.bottleneck


@final
@dataclass(frozen=True, slots=True)
class Scene:
    """All that a simulation needs: a plan, and how long everything takes.

    A plan's own resources say how often a task is tried and when it is late; its workers are those of the cluster.
    """

    plan: Plan
    cluster: Cluster
    times: Mapping[str, TaskTimes]
    """By group of nodes."""
    habits: Habits
    chance: Chance
    seed: int
    rounds: Mapping[str, Rounds] = field(default_factory=dict)
    """How workers share solves, by solution; none for those that are one task."""


@final
class SharingWorkers:
    """The driver, as rounds of shared solves ask it; workers that wait for the last part of a round have nothing to do."""

    def __init__(self, driver: Driver, workers: SimulatedWorkers) -> None:
        self._driver = driver
        self._workers = workers

    def run_shared(self, name: str, tasks: Iterable[SharedSolveTask]) -> bool:
        """Carry out tasks of one solution."""
        found = self._driver.run_shared(name, tasks)
        self._workers.close_stage()
        return found

    def note(self, text: str) -> None:
        """Tell nobody."""


def scene_of(workload: Workload, cluster: Cluster, calibration: Calibration | None, chance: Chance, seed: int) -> Scene:
    """Return the simulation of a job on a cluster.

    Raises:
        PlanError: A single sample does not fit the memory that the job allows a worker.
    """
    times = durations_on(workload, cluster, calibration)
    start = cluster.worker_start_seconds
    if calibration is not None and calibration.worker_start_seconds is not None:
        start = calibration.worker_start_seconds
    habits = Habits(
        start_seconds=start,
        kept_sides=min(found.passes.kept_sides for found in times.values()),
        first_seconds=dict(next(iter(times.values())).first_seconds),
        checkpoint_seconds=workload.config.resources.checkpoint_seconds,
    )
    rounds = dict(next(iter(times.values())).rounds)
    return Scene(workload.plan(), cluster, times, habits, chance, seed, rounds)


def simulate(scene: Scene, lines: TextIO | None = None) -> Simulated:
    """Simulate a run; memory is O(tasks).

    Args:
        scene: What is to be simulated.
        lines: A file for its events.
    """
    cluster, plan = scene.cluster, scene.plan
    draws = Draws(scene.seed, scene.chance)
    machines = Machines(cluster, scene.chance, draws)
    workers = SimulatedWorkers(machines, cluster.storage, scene.times, scene.habits, scene.chance, draws)
    ledger = SimulatedLedger(workers.spend, cluster.driver_seconds_per_task, 1 / cluster.storage.commits)
    log = SimulatedLog(workers.now, lines)
    resources = plan.config.resources
    fleet = Fleet(
        workers,
        _spec(plan.config, plan.geometry, scene.habits.kept_sides),
        _pools(scene),
        task_seconds=resources.task_seconds,
        start_seconds=resources.start_seconds,
        slow_factor=resources.slow_factor,
        tell=lambda **fields: log.add("worker", **fields),
    )
    failure = ""
    log.add("start", host="simulation", process=0)
    with fleet:
        driver = Driver(
            plan,
            fleet,
            ledger,
            SimulatedTenure(workers.spend, cluster.storage.request_seconds),
            log,
            Silent(),
            StopRequest(),
            last_state=workers.labour.last_state,
            kept_sides=scene.habits.kept_sides,
        )
        try:
            for stages in plan.waves:
                if SOLVE_STAGE in stages:
                    _share_solves(scene, driver, workers, log)
                driver.run_stages(*stages)
                workers.close_stage()
            driver.conclude()
        except NtkPipeError as error:
            failure = error.message
    return _simulated(scene, machines, workers, ledger, log, failure)


def _share_solves(scene: Scene, driver: Driver, workers: SimulatedWorkers, log: SimulatedLog) -> None:
    """Take the rounds of solves that workers share; what ends them is a task of the stage."""
    hands, taken = SharingWorkers(driver, workers), workers.labour.steps
    for name, shared in scene.rounds.items():
        log.begin(SOLVE_STAGE)
        take_rounds(hands, name, partial(_progress, shared, taken, name))


def _progress(shared: Rounds, steps: Mapping[str, int], name: str) -> SolveProgress | None:
    """Return how far a solve is after the steps that were taken, the first of which is its set-up."""
    taken = steps.get(name, 0)
    if not taken:
        return None
    return SolveProgress(place=taken, num_parts=shared.num_parts, finished=taken > shared.num_steps, text="")


def _simulated(
    scene: Scene,
    machines: Machines,
    workers: SimulatedWorkers,
    ledger: SimulatedLedger,
    log: SimulatedLog,
    failure: str,
) -> Simulated:
    """Return how a run went that has ended."""
    plan, labour = scene.plan, workers.labour
    num_workers = sum(pool.workers for pool in _pools(scene))
    height = strip_height(plan.geometry, scene.habits.kept_sides, num_workers)
    return Simulated(
        cluster=scene.cluster,
        seconds=workers.now(),
        account=labour.account,
        worker_seconds=workers.worker_seconds,
        driver_seconds=workers.driver_seconds,
        stages=log.stages,
        shared_seconds=labour.shared_seconds,
        num_tasks=ledger.num_committed,
        num_retries=ledger.failures["again"],
        num_lost=labour.num_lost,
        num_nodes_lost=machines.num_lost,
        bytes_read=labour.bytes_read,
        bytes_written=labour.bytes_written,
        requests=labour.shared.requests.units,
        sides_read=labour.sides_read,
        sides_planned=planned_reads(plan.geometry, height, num_workers) if plan.num_tasks(KERNEL_STAGE) else 0,
        storage_shares=workers.storage_shares,
        price=_price(scene.cluster, machines.price(workers.now()), workers, ledger),
        failure=failure,
        holes=log.holes,
    )


def _pools(scene: Scene) -> list[PoolConfig]:
    """Return the workers that are wanted: those of all nodes that there will be."""
    joining = {group.name: 0 for group in scene.cluster.groups}
    for join in scene.chance.joins:
        joining[join.group] += join.nodes
    return [pool_of(group, group.nodes + joining[group.name]) for group in scene.cluster.groups]


def _price(cluster: Cluster, of_nodes: float, workers: SimulatedWorkers, ledger: SimulatedLedger) -> float:
    if not cluster.has_prices:
        return 0.0
    storage = cluster.storage
    written = workers.labour.num_writes + ledger.num_committed
    read = workers.labour.shared.requests.units - workers.labour.num_writes
    return of_nodes + (read * storage.price_per_million_reads + written * storage.price_per_million_writes) / 1e6


def _spec(config: RunConfig, geometry: Geometry, kept_sides: int) -> WorkerSpec:
    """Return what the fleet knows of its workers; nothing is started with it."""
    return WorkerSpec(
        url="",
        config=config,
        geometry=geometry,
        routes={},
        weights_digests={},
        input_digests={},
        modules={},
        fingerprints={},
        passes=PassPlan(batch_size=1, max_vectors=1, gram_samples=1, row_samples=1, kept_sides=kept_sides),
        choices={},
        threads=None,
    )
