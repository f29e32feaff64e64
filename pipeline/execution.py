"""Carrying out a planned run under its lock: arrays, what is taken over, stage after stage."""

import os
import platform
import sys
import time
from contextlib import suppress
from functools import partial

import numpy as np

from ntkpipe.configs.errors import NtkPipeError, RunLockedError, RunStoppedError, StorageError
from ntkpipe.pipeline.cost import CostModel
from ntkpipe.pipeline.drive import Driver
from ntkpipe.pipeline.events import EventLog, Progress, Watchers
from ntkpipe.pipeline.executors.registry import make_executor, make_observers
from ntkpipe.pipeline.identity import TaskIdentities
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.reuse import take_over
from ntkpipe.pipeline.rounds import run_rounds, shared_solutions
from ntkpipe.pipeline.status_file import StatusFile
from ntkpipe.pipeline.stopping import STOPPED, Leave, StopRequest
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import PREPARE_STAGE, PREPARE_TASK
from ntkpipe.storage.fencing import FencedStore
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import SCHEMA_VERSION, Receipt
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.solutions import SOLVE_STAGE
from ntkpipe.storage.solver_state import clear_solver, last_state
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.probing.probe import Probe
from ntkpipe.workers.tasks import WorkerSpec


def make_plan(probe: Probe) -> Plan:
    """Return the plan of a run, with prices."""
    cost_model = CostModel(
        probe.config,
        probe.geometry,
        num_parameters=probe.num_parameters,
        forward_flops=probe.forward_flops,
        sample_size=probe.sample_size,
    )
    return Plan(probe.config, probe.geometry, cost_model)


def execute(
    store: AbstractStore,
    plan: Plan,
    probe: Probe,
    lock: EpochLock,
    progress: Progress,
    stop: StopRequest,
    *,
    origin: str = "",
) -> None:
    """Bring a locked run to its end and log how it went.

    Args:
        store: Of the run, opened for writing.
        plan: Of the run.
        probe: What the plan was made from.
        lock: Held on the run.
        progress: Is told what happens.
        stop: Asks the driver to stop.
        origin: URL of the run from which finished tasks are taken over; empty for none.

    Raises:
        NtkPipeError: Whatever ends the run; what was committed stays.
    """
    fenced = FencedStore(store, lock.epoch)
    log, ledger, identities = EventLog(fenced, lock.epoch), Ledger(store), TaskIdentities(probe)
    status = StatusFile(fenced, lock.epoch, log)
    progress = Watchers(progress, status)
    log.listen(status.hear)
    log.add("start", host=platform.node(), process=os.getpid())

    def tell(text: str) -> None:
        log.add("reuse", text=text)
        progress.note(text)

    def check() -> None:
        lock.check()
        if stop.requested:
            raise RunStoppedError(STOPPED)

    try:
        with status:
            prepare(store, ledger, probe, lock.epoch)
            ledger.compact(lock.epoch, lock.check)
            if origin:
                take_over(origin, fenced, plan, identities, ledger, epoch=lock.epoch, tell=tell, check=check)
            spec = worker_spec(store, plan, probe, epoch=lock.epoch)
            with make_executor(plan.config.resources, spec, partial(log.add, "worker"), progress.note) as executor:
                observers = make_observers(plan.config.resources)
                for observer in observers:
                    log.listen(observer.hear)
                driver = Driver(
                    plan,
                    executor,
                    ledger,
                    lock,
                    log,
                    Watchers(progress, *observers),
                    stop,
                    last_state=lambda name: last_state(store, name),
                    kept_sides=probe.passes.kept_sides,
                    made_from=identities.of,
                )
                _run_stages(driver, plan, ledger, fenced)
    except NtkPipeError as error:
        log.add("stop", kind=error.kind, message=error.message)
        raise
    except Leave:
        log.add("stop", kind=RunStoppedError.kind, message=STOPPED)
        raise
    finally:
        # A full disk must not hide the error that it caused; a driver that was replaced says nothing more.
        with suppress(StorageError, RunLockedError):
            log.flush()


def _run_stages(driver: Driver, plan: Plan, ledger: Ledger, store: FencedStore) -> None:
    """Run all stages, those together that may overlap; solves that workers share come before those that are one task."""
    for stages in plan.waves:
        if SOLVE_STAGE in stages:
            for name in shared_solutions(plan.config):
                run_rounds(driver, store, ledger, name)
            driver.run_stages(*stages, committed=lambda name: clear_solver(store, name))
        else:
            driver.run_stages(*stages)
    driver.conclude()


def prepare(store: AbstractStore, ledger: Ledger, probe: Probe, epoch: int) -> None:
    """Create the arrays that are not there, and write ids and labels unless they are committed."""
    chunks, started = ChunkStore(FencedStore(store, epoch)), time.perf_counter()
    chunks.create(array_specs(probe.geometry), {"schema_version": SCHEMA_VERSION})
    if ledger.is_committed(PREPARE_STAGE, PREPARE_TASK):
        return
    records = []
    for name, source in probe.splits.items():
        ids = np.array(source.ids, dtype=object)
        records.append(chunks.write(layout.sample_id(name), (0,), ids))
        if source.labels is not None:
            values = source.labels.numpy()
            records.append(chunks.write(layout.label(name), (0,) * values.ndim, values))
    ledger.commit(
        Receipt(
            stage=PREPARE_STAGE,
            task=PREPARE_TASK,
            chunks=tuple(records),
            seconds=time.perf_counter() - started,
            worker="driver",
            epoch=epoch,
        )
    )


def worker_spec(store: AbstractStore, plan: Plan, probe: Probe, *, epoch: int = 0) -> WorkerSpec:
    """Return everything that a worker of a run needs to start."""
    resources = plan.config.resources
    return WorkerSpec(
        url=absolute(store.url),
        config=plan.config,
        geometry=plan.geometry,
        routes=probe.model.routes if probe.model is not None else {},
        weights_digests=probe.model.weights_digests if probe.model is not None else {},
        input_digests=probe.input_digests,
        modules=probe.model.watched if probe.model is not None else {},
        fingerprints=probe.fingerprints,
        passes=probe.passes,
        choices={name: choice.why for name, choice in probe.solvers.items() if choice.why},
        threads=resources.threads_per_worker,
        device=resources.device,
        import_path=(os.getcwd(), *(folder for folder in sys.path if folder)),
        epoch=epoch,
    )


def absolute(url: str) -> str:
    """Return a URL that means the same in another folder."""
    return url if "://" in url else os.path.abspath(url)
