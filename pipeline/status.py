"""How far a run is: counted from its receipts, never from a scheduler's memory."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from ntkpipe.configs.errors import StorageError
from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.plan import Plan
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.live import LiveStage, LiveStatus
from ntkpipe.storage.locks import Claim, current_epoch, liveness, read_claim, silent_seconds
from ntkpipe.storage.records import Failure, Manifest, Verdict
from ntkpipe.storage.solutions import SOLVE_STAGE, committed_as
from ntkpipe.storage.solver_state import SolveProgress
from ntkpipe.storage.stores.base import AbstractStore

State = Literal["finished", "running", "interrupted", "incomplete"]
"""``incomplete``: all that is missing was set aside because it failed for good, or left out because it needs such a task."""

NUM_FAILURES = 100
"""That are told; each is one task."""


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Progress of a stage."""

    stage: str
    done: int
    total: int
    set_aside: int = 0
    """Tasks that failed on every attempt they were allowed."""
    left_out: int = 0
    """Tasks that need one that was set aside."""
    tasks_per_second: float | None = None
    """Of late, as the driver says; None where nobody works on the run or it does not tell."""
    bytes_per_second: float | None = None
    """Of late, written."""
    seconds_left: float | None = None
    """At that rate."""
    failed_attempts: int = 0
    """That the driver at work has seen."""

    @property
    def is_open(self) -> bool:
        """Whether there is a task that nobody has tried to the end."""
        return self.done + self.set_aside + self.left_out < self.total


@dataclass(frozen=True, slots=True)
class RunStatus:
    """Progress of a run."""

    url: str
    name: str
    run_id: str
    state: State
    stages: tuple[StageStatus, ...]
    epoch: int
    """How many drivers have worked on it so far."""
    owner: str | None
    """Who is working on it now."""
    silent_seconds: float | None
    """Since the owner's last sign of life."""
    solves: dict[str, str]
    """How far the solvers of unfinished solutions are."""
    failures: tuple[str, ...]
    """What ended the last attempts of tasks that are not finished yet, a hundred at the most."""
    workers_ready: int | None = None
    """That take tasks, as the driver says; None where nobody works on the run or it does not tell."""
    workers_wanted: int | None = None
    """That were asked for."""
    told_seconds: float | None = None
    """Since the driver has told rates, times and workers; None where that is not known."""


def read_status(store: AbstractStore, manifest: Manifest) -> RunStatus:
    """Count receipts and look at the lock, and at what a living driver says of its speed."""
    plan = Plan(load_config(manifest.config, stored=True), manifest.geometry)
    ledger = Ledger(store)
    committed = {stage: ledger.committed(stage) for stage in plan.stages}
    failures = _open_failures(store, committed)
    epoch = current_epoch(store)
    claim = read_claim(store, epoch) if epoch else None
    alive, silent = (False, None) if claim is None else _owner(store, claim)
    live = LiveStatus.read(store) if alive else None
    if live is None or live.epoch != epoch or live.ended:
        live = None
    told = {} if live is None else {stage.stage: stage for stage in live.stages}
    stages = tuple(
        StageStatus(
            stage,
            _num_done(plan, stage, committed[stage]),
            plan.num_tasks(stage),
            set_aside=_count(failures, stage, "aside"),
            left_out=_count(failures, stage, "left-out"),
            **_speed(told.get(stage)),
        )
        for stage in plan.stages
    )
    finished = all(stage.done >= stage.total for stage in stages)
    return RunStatus(
        url=store.url,
        name=manifest.name,
        run_id=manifest.run_id,
        state="finished" if finished else "running" if alive else _ended(stages),
        stages=stages,
        epoch=epoch,
        owner=f"process {claim.process} on {claim.host}" if claim is not None and alive else None,
        silent_seconds=silent,
        solves={} if finished else dict(_open_solves(store, manifest, committed[SOLVE_STAGE])),
        failures=tuple(_told(failures)),
        workers_ready=None if live is None else live.workers_ready,
        workers_wanted=None if live is None else live.workers_wanted,
        told_seconds=None if live is None or silent is None else _age(store, epoch, silent),
    )


def _speed(stage: LiveStage | None) -> dict[str, Any]:
    """Return what a living driver says of a stage; receipts tell what is finished."""
    fields = ("tasks_per_second", "bytes_per_second", "seconds_left", "failed_attempts")
    return {} if stage is None else {name: getattr(stage, name) for name in fields}


def _age(store: AbstractStore, epoch: int, silent: float) -> float | None:
    """Return how old the driver's last word is: both it and its last sign of life are dated by the store."""
    told, at = store.modified(layout.STATUS), store.modified(layout.heartbeat(epoch))
    if at is None:
        at = store.modified(layout.epoch(epoch))
    return None if told is None or at is None else max(0.0, silent + at - told)


def _num_done(plan: Plan, stage: str, committed: frozenset[str]) -> int:
    """Return how many tasks of a stage are finished; a receipt that belongs to none does not make up for one."""
    if len(committed) < plan.num_tasks(stage):
        return len(committed)
    return sum(task.id in committed for task in plan.tasks(stage))


def _open_solves(store: AbstractStore, manifest: Manifest, committed: frozenset[str]) -> Iterator[tuple[str, str]]:
    for name in manifest.geometry.solutions:
        progress = None if name in committed else SolveProgress.read(store, name)
        if progress is not None:
            yield name, progress.text


def _owner(store: AbstractStore, claim: Claim) -> tuple[bool, float | None]:
    """Return whether the owner of a claim may be alive, and for how long it has been silent, where that can be told."""
    state = liveness(claim)
    if state in ("released", "dead"):
        return False, None
    try:
        silent = silent_seconds(store, claim.epoch)
    except StorageError:
        # The store's clock can be read by writing only, which whoever asks may not be allowed to do.
        return True, None
    return (True, silent) if state == "alive" or silent <= claim.lease_seconds else (False, None)


def _ended(stages: tuple[StageStatus, ...]) -> State:
    return "interrupted" if any(stage.is_open for stage in stages) else "incomplete"


def _open_failures(store: AbstractStore, committed: dict[str, frozenset[str]]) -> dict[tuple[str, str], Failure]:
    """Return the last failure of every task that is not committed."""
    found: dict[tuple[str, str], Failure] = {}
    for key, data in store.get_many(store.names(layout.FAILED)):
        failure = None
        # A damaged one, such as the empty object that a power failure leaves, says nothing.
        with suppress(StorageError):
            failure = None if data is None else Failure.parse(data, f"{store.url}/{key}")
        if failure is None:
            continue
        _, task = committed_as(failure.stage, failure.task)
        if task in committed.get(failure.stage, ()):
            continue
        known = found.get((failure.stage, task))
        if known is None or _order(known) <= _order(failure):
            found[failure.stage, task] = failure
    return found


def _order(failure: Failure) -> tuple[int, bool, float]:
    # Parts of a shared solve that were under way when one of them was set aside may fail after it.
    return failure.epoch, failure.verdict != "again", failure.failed_at


def _count(failures: dict[tuple[str, str], Failure], stage: str, verdict: Verdict) -> int:
    return sum(failure.verdict == verdict for (of, _), failure in failures.items() if of == stage)


def _told(failures: dict[tuple[str, str], Failure]) -> Iterator[str]:
    """Yield what went wrong; what was left out only tells of other failures."""
    told = [failure for failure in failures.values() if failure.verdict != "left-out"]
    for failure in told[:NUM_FAILURES]:
        yield f"{failure.stage} task {failure.task}: {failure.message}"
