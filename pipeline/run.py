"""The verbs that bring a run to its end: start it, resume it."""

import os
import platform
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ntkpipe.configs.canonical import differences
from ntkpipe.configs.errors import ConfigError, NtkPipeError, RunMismatchError, StorageError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.cost import CostModel
from ntkpipe.pipeline.drive import Driver
from ntkpipe.pipeline.events import EventLog, Progress, Silent
from ntkpipe.pipeline.executors.registry import make_executor
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.query import Run, open_run
from ntkpipe.pipeline.rounds import run_rounds, shared_solutions
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import PREPARE_STAGE, PREPARE_TASK
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import SCHEMA_VERSION, ChosenSolver, Manifest, Receipt
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.solver_state import clear_solver, last_state
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.stores.writable import open_for_writing
from ntkpipe.workers.probing.probe import Probe, probe_run
from ntkpipe.workers.tasks import SOLVE_STAGE, WorkerSpec

RECORDED_VERSIONS = ("numpy", "ray", "torch", "zarr")

Source = str | Path | Mapping[str, Any] | RunConfig


def plan(config: Source, overrides: Sequence[str] = ()) -> tuple[Plan, Probe]:
    """Look at model and data and plan a run; computes and writes nothing.

    Raises:
        ConfigError: The configuration, the model or the data is not acceptable.
        CoverageError: The model cannot be differentiated per sample.
    """
    checked = load_config(config, overrides)
    probe = probe_run(checked)
    return _plan(probe), probe


def run(
    config: Source,
    out: str | os.PathLike[str] | None = None,
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Carry out a configuration from start to end.

    Args:
        config: A YAML file, a preset's name, a dictionary, or a RunConfig.
        out: Path or URL of the new run; ``runs/<name>-<time>`` by default.
        overrides: ``key=value`` assignments applied to the configuration.
        progress: Is told what happens.
        stop: Asks the driver to stop, from a signal handler or another thread.

    Returns:
        The finished run, open for queries.

    Raises:
        ConfigError: The configuration is not acceptable, or there is a run at ``out`` already.
        PlanError: The run does not fit its store.
        NtkPipeError: Whatever ends the run; what was committed stays, and :func:`resume` goes on from there.
    """
    checked = load_config(config, overrides)
    url = os.fspath(out) if out is not None else f"runs/{checked.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    store = open_store(url)
    _check_shared(checked, store)
    if store.get(layout.MANIFEST) is not None:
        raise ConfigError(f"{store.url} holds a run already. Go on with `ntkpipe resume {store.url}`, or choose --out.")
    probe = probe_run(checked)
    made = _plan(probe)
    made.check_space(store)
    store = open_for_writing(url, checked.store)
    with EpochLock(store, checked.store.lease_seconds) as lock:
        manifest = _manifest(checked, probe)
        if not store.put_new(layout.MANIFEST, manifest.encode()):
            raise ConfigError(f"{store.url} was taken by another run a moment ago; choose another --out.")
        _execute(store, made, probe, lock, progress or Silent(), stop or StopRequest())
    return open_run(store.url)


def resume(
    url: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Finish an interrupted run: what is planned minus what is committed.

    Args:
        url: Of the run.
        overrides: Assignments to runtime fields, such as ``resources.workers=4``.
        progress: Is told what happens.
        stop: As for :func:`run`.

    Raises:
        NotFoundError: There is no run.
        RunMismatchError: Configuration, weights, data or code would give other numbers; lists every difference.
        RunLockedError: Another driver is working on it.
    """
    store = open_store(url)
    manifest = Manifest.read(store)
    config = load_config(manifest.config, overrides)
    _check_shared(config, store)
    probe = probe_run(config, manifest.solvers)
    _check_same(store, manifest, _manifest(config, probe))
    store = open_for_writing(url, config.store)
    with EpochLock(store, config.store.lease_seconds) as lock:
        _execute(store, _plan(probe), probe, lock, progress or Silent(), stop or StopRequest())
    return open_run(store.url)


def _plan(probe: Probe) -> Plan:
    cost_model = CostModel(
        probe.config,
        probe.geometry,
        num_parameters=probe.num_parameters,
        forward_flops=probe.forward_flops,
        sample_size=probe.sample_size,
    )
    return Plan(probe.config, probe.geometry, cost_model)


def _manifest(config: RunConfig, probe: Probe) -> Manifest:
    return Manifest(
        run_id=uuid.uuid4().hex,
        name=config.name,
        created_at=time.time(),
        config=config.document(),
        semantic=config.semantic(),
        fingerprints=probe.fingerprints,
        geometry=probe.geometry,
        solvers={
            name: ChosenSolver(section=choice.section.model_dump(mode="json"), why=choice.why)
            for name, choice in probe.solvers.items()
            if choice.why
        },
        num_parameters=probe.num_parameters,
        versions={"python": platform.python_version()} | {name: version(name) for name in RECORDED_VERSIONS},
    )


def _check_same(store: AbstractStore, stored: Manifest, asked: Manifest) -> None:
    found = list(differences(stored.identity(), asked.identity()))
    if found:
        lines = "".join(f"\n  {path}: stored {_short(old)}, now {_short(new)}" for path, old, new in found)
        raise RunMismatchError(
            f"{store.url} cannot be resumed: it would mix different numbers. Differences:{lines}\n"
            "Restore what changed, or start a new run with another --out."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 64 else f"{text[:61]}..."


def _check_shared(config: RunConfig, store: AbstractStore) -> None:
    if config.resources.executor != "serial" and not store.shared:
        raise ConfigError(f"{store.url} exists in this process only; use resources.executor=serial, or another --out.")


def _execute(
    store: AbstractStore, plan: Plan, probe: Probe, lock: EpochLock, progress: Progress, stop: StopRequest
) -> None:
    """Bring a locked run to its end and log how it went."""
    log, ledger = EventLog(store, lock.epoch), Ledger(store)
    log.add("start", host=platform.node(), process=os.getpid())
    try:
        _prepare(store, ledger, probe, lock.epoch)
        with make_executor(plan.config.resources, _worker_spec(store, plan, probe)) as executor:
            driver = Driver(
                plan, executor, ledger, lock, log, progress, stop, last_state=lambda name: last_state(store, name)
            )
            for stage in plan.stages:
                if stage == SOLVE_STAGE:
                    for name in shared_solutions(plan.config):
                        run_rounds(driver, store, ledger, name)
                    driver.run_stage(stage, committed=lambda name: clear_solver(store, name))
                else:
                    driver.run_stage(stage)
        log.add("finish")
    except NtkPipeError as error:
        log.add("stop", kind=error.kind, message=error.message)
        raise
    finally:
        # A full disk must not hide the error that it caused.
        with suppress(StorageError):
            log.flush()


def _prepare(store: AbstractStore, ledger: Ledger, probe: Probe, epoch: int) -> None:
    """Create the arrays that are not there, and write ids and labels unless they are committed."""
    chunks, started = ChunkStore(store), time.perf_counter()
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


def _worker_spec(store: AbstractStore, plan: Plan, probe: Probe) -> WorkerSpec:
    resources = plan.config.resources
    threads = resources.threads_per_worker
    if threads is None and resources.executor != "serial":
        threads = max(1, len(os.sched_getaffinity(0)) // resources.workers)
    return WorkerSpec(
        url=os.path.abspath(store.url) if "://" not in store.url else store.url,
        config=plan.config,
        geometry=plan.geometry,
        routes=probe.model.routes if probe.model is not None else {},
        weights_digests=probe.model.weights_digests if probe.model is not None else {},
        input_digests=probe.input_digests,
        modules=probe.model.watched if probe.model is not None else {},
        fingerprints=probe.fingerprints,
        passes=probe.passes,
        choices={name: choice.why for name, choice in probe.solvers.items() if choice.why},
        threads=threads,
        import_path=(os.getcwd(), *(folder for folder in sys.path if folder)),
    )
