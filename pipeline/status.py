"""How far a run is: counted from its receipts, never from a scheduler's memory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.plan import Plan
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import Claim, current_epoch, liveness, read_claim
from ntkpipe.storage.records import Failure, Manifest
from ntkpipe.storage.solver_state import SolveProgress
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.tasks import SOLVE_STAGE

State = Literal["finished", "running", "interrupted"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Progress of a stage."""

    stage: str
    done: int
    total: int


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
    """What ended earlier attempts of tasks that are not finished yet."""


def read_status(store: AbstractStore, manifest: Manifest) -> RunStatus:
    """Count receipts and look at the lock."""
    plan = Plan(RunConfig.model_validate(manifest.config), manifest.geometry)
    ledger = Ledger(store)
    committed = {stage: ledger.committed(stage) for stage in plan.stages}
    stages = tuple(StageStatus(stage, len(committed[stage]), plan.num_tasks(stage)) for stage in plan.stages)
    epoch = current_epoch(store)
    claim = read_claim(store, epoch) if epoch else None
    finished = all(stage.done >= stage.total for stage in stages)
    alive = claim is not None and _may_be_alive(claim)
    return RunStatus(
        url=store.url,
        name=manifest.name,
        run_id=manifest.run_id,
        state="finished" if finished else "running" if alive else "interrupted",
        stages=stages,
        epoch=epoch,
        owner=f"process {claim.process} on {claim.host}" if claim is not None and alive else None,
        silent_seconds=time.time() - claim.alive_at if claim is not None and alive else None,
        solves={} if finished else dict(_open_solves(store, manifest, committed[SOLVE_STAGE])),
        failures=tuple(_open_failures(store, committed)),
    )


def _open_solves(store: AbstractStore, manifest: Manifest, committed: frozenset[str]) -> Iterator[tuple[str, str]]:
    for name in manifest.geometry.solutions:
        progress = None if name in committed else SolveProgress.read(store, name)
        if progress is not None:
            yield name, progress.text


def _may_be_alive(claim: Claim) -> bool:
    state = liveness(claim)
    return state == "alive" or (state == "unknown" and time.time() - claim.alive_at <= claim.lease_seconds)


def _open_failures(store: AbstractStore, committed: dict[str, frozenset[str]]) -> list[str]:
    found = []
    for key in store.names(layout.FAILED):
        failure = Failure.parse(store.read(key), f"{store.url}/{key}")
        # A step of a shared solve, or a part of one, has no receipt of its own.
        task = failure.task.partition("/")[0] if failure.stage == SOLVE_STAGE else failure.task
        if task not in committed.get(failure.stage, ()):
            found.append(f"{failure.stage} task {failure.task}: {failure.message}")
    return found
