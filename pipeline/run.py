"""The verbs that bring a run to its end: start it, resume it, fork it, extend it."""

import math
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ntkpipe.configs.errors import ConfigError
from ntkpipe.configs.loading import load_config
from ntkpipe.configs.run import RunConfig
from ntkpipe.pipeline.events import Progress, Silent
from ntkpipe.pipeline.execution import absolute, execute, make_plan
from ntkpipe.pipeline.extension import check_extension
from ntkpipe.pipeline.manifests import check_same, make_manifest
from ntkpipe.pipeline.plan import Plan
from ntkpipe.pipeline.query.run import Run, open_run
from ntkpipe.pipeline.stopping import StopRequest
from ntkpipe.storage import layout
from ntkpipe.storage.locks import CLOCK_SECONDS, EpochLock, current_epoch, liveness, read_claim, silent_seconds
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.stores.writable import open_for_writing
from ntkpipe.workers.probing.probe import Probe, probe_run

Source = str | Path | Mapping[str, Any] | RunConfig
Url = str | os.PathLike[str]

WAIT_SECONDS = 1.0
"""Between two looks at whether a lost driver's lease is over."""


def plan(config: Source, overrides: Sequence[str] = ()) -> tuple[Plan, Probe]:
    """Look at model and data and plan a run; computes and writes nothing.

    Raises:
        ConfigError: The configuration, the model or the data is not acceptable.
        CoverageError: The model cannot be differentiated per sample.
    """
    checked = load_config(config, overrides)
    probe = probe_run(checked)
    return make_plan(probe), probe


def run(
    config: Source,
    out: Url | None = None,
    *,
    overrides: Sequence[str] = (),
    or_resume: bool = False,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Carry out a configuration from start to end.

    Args:
        config: A YAML file, a preset's name, a dictionary, or a RunConfig.
        out: Path or URL of the new run; ``runs/<name>-<time>`` by default.
        overrides: ``key=value`` assignments applied to the configuration.
        or_resume: Finish the run at ``out`` if there is one, as :func:`resume` does, with the runtime fields of this
            configuration; for whoever starts drivers again that were lost. A lost driver's lease is waited for.
        progress: Is told what happens.
        stop: Asks the driver to stop, from a signal handler or another thread.

    Returns:
        The finished run, open for queries.

    Raises:
        ConfigError: The configuration is not acceptable, or there is a run at ``out`` already.
        PlanError: The run does not fit its store.
        RunMismatchError: With ``or_resume``, the run at ``out`` would give other numbers.
        NtkPipeError: Whatever ends the run; what was committed stays, and :func:`resume` goes on from there.
    """
    checked = load_config(config, overrides)
    if or_resume:
        if out is None:
            raise ConfigError("a run that is to be resumed if it exists needs a place: give --out.")
        store = open_store(out)
        _await_lease(store)
        if store.get(layout.MANIFEST) is not None:
            return _finish(out, store, Manifest.read(store), checked, progress, stop)
    return _start(checked, out, progress, stop)


def resume(
    url: Url,
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
    return _finish(url, store, manifest, load_config(manifest.config, overrides, stored=True), progress, stop)


def fork(
    url: Url,
    out: Url | None = None,
    *,
    overrides: Sequence[str] = (),
    config: Source | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Start a new run that takes over every finished task of another one that would give the same bytes.

    On one file system chunks are linked, in one object store they are copied by the service. The other run is not
    changed, need not be finished and may be running. If the new one is interrupted, :func:`resume` goes on with it.

    Args:
        url: Of the other run.
        out: As for :func:`run`.
        overrides: Assignments to any fields of the configuration.
        config: Of the new run; by default that of the other one.
        progress: Is told what happens, and how many tasks of each stage were taken over.
        stop: As for :func:`run`.

    Raises:
        NotFoundError: There is no run at ``url``.
        NtkPipeError: As for :func:`run`.
    """
    origin = open_store(url)
    manifest = Manifest.read(origin)
    checked = load_config(manifest.config if config is None else config, overrides)
    return _start(checked, out, progress, stop, origin=absolute(origin.url))


def extend(
    url: Url,
    out: Url | None = None,
    *,
    overrides: Sequence[str] = (),
    config: Source | None = None,
    progress: Progress | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Start a new run with more samples: features and kernel blocks of the old ones are taken over from another run.

    A fork that insists that nothing but the samples changes, and that every split begins with the old ones. Splits may
    be added. Only new shards and blocks are computed, and those at the old end of a split, which were cut off there;
    solutions and analyses are found anew.

    Args:
        url: Of the other run.
        out: As for :func:`run`.
        overrides: Assignments to ``data`` and to runtime fields.
        config: Of the new run; by default that of the other one.
        progress: As for :func:`fork`.
        stop: As for :func:`run`.

    Raises:
        NotFoundError: There is no run at ``url``.
        RunMismatchError: More than the samples would change, or a split does not begin with the old ones.
        NtkPipeError: As for :func:`run`.
    """
    origin = open_store(url)
    manifest = Manifest.read(origin)
    checked = load_config(manifest.config if config is None else config, overrides)

    def check(probe: Probe) -> None:
        check_extension(origin, manifest, make_manifest(checked, probe), probe)

    return _start(checked, out, progress, stop, origin=absolute(origin.url), check=check)


def _start(
    config: RunConfig,
    out: Url | None,
    progress: Progress | None,
    stop: StopRequest | None,
    *,
    origin: str = "",
    check: Callable[[Probe], None] | None = None,
) -> Run:
    """Start a run where there is none; ``check`` may refuse what was found out about its model and data."""
    url = os.fspath(out) if out is not None else f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    store = open_store(url)
    check_shared(config, store)
    if store.get(layout.MANIFEST) is not None:
        raise ConfigError(
            f"{store.url} holds a run already. Go on with `ntkpipe resume {shlex.quote(store.url)}`, or choose --out."
        )
    check_free(store)
    probe = probe_run(config)
    if check is not None:
        check(probe)
    made = make_plan(probe)
    if not origin:  # what is linked takes no space, and a disk that is full after all loses nothing
        made.check_space(store)
    return carry_out(
        url, config, probe, made, progress, stop, origin=origin, manifest=make_manifest(config, probe, origin=origin)
    )


def _finish(
    url: Url,
    store: AbstractStore,
    manifest: Manifest,
    config: RunConfig,
    progress: Progress | None,
    stop: StopRequest | None,
) -> Run:
    """Finish a run that was started."""
    check_shared(config, store)
    probe = probe_run(config, manifest.solvers)
    check_same(store.url, manifest, make_manifest(config, probe))
    return carry_out(url, config, probe, make_plan(probe), progress, stop, origin=manifest.origin)


def _await_lease(store: AbstractStore) -> None:
    """Wait while the last driver, of another machine, is silent, until its lease is over or it gives a sign of life.

    Whoever starts a lost driver again does so within seconds and a few times only, and none would get the run.
    """
    epoch, before = current_epoch(store), -1.0
    while epoch:
        claim = read_claim(store, epoch)
        silent = silent_seconds(store, epoch) if liveness(claim) == "unknown" else math.inf
        if silent < before or silent > claim.lease_seconds + CLOCK_SECONDS:
            return
        before = silent
        time.sleep(WAIT_SECONDS)


def carry_out(
    url: Url,
    config: RunConfig,
    probe: Probe,
    made: Plan,
    progress: Progress | None,
    stop: StopRequest | None,
    *,
    origin: str,
    manifest: Manifest | None = None,
) -> Run:
    """Lock a run and bring it to its end; a new one, which has a manifest to be written, or one that is there."""
    store, stop = open_for_writing(url, config.store), stop or StopRequest()
    with EpochLock(store, config.store.lease_seconds) as lock, stop.heeded(config.resources.grace_seconds):
        if manifest is not None and not store.put_new(layout.MANIFEST, manifest.encode()):
            raise ConfigError(f"{store.url} was taken by another run a moment ago; choose another --out.")
        execute(store, made, probe, lock, progress or Silent(), stop, origin=origin)
    return open_run(url)


def check_free(store: AbstractStore) -> None:
    """Refuse a place where another run has left what would be taken for this one's.

    Raises:
        ConfigError: There is such a thing.
    """
    left = sorted({layout.RECEIPTS, layout.SEGMENTS, layout.SOLVER}.intersection(store.folders()))
    # A run that has started since then has a manifest, and is refused as it is written.
    if left and not store.exists(layout.MANIFEST):
        raise ConfigError(
            f"{store.url} holds what a run has left ({', '.join(left)}), but not its {layout.MANIFEST}, so that nobody "
            f"knows what it belongs to. Put the {layout.MANIFEST} back if there is a copy of it, or choose another --out."
        )


def check_shared(config: RunConfig, store: AbstractStore) -> None:
    """Refuse a store that the workers of an executor do not see.

    Raises:
        ConfigError: They do not.
    """
    if config.resources.executor != "serial" and not store.shared:
        raise ConfigError(f"{store.url} exists in this process only; use resources.executor=serial, or another --out.")
