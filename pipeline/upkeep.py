"""The verbs that look after what a run has stored: verify it, remove what it can do without."""

import os
from collections.abc import Generator, Iterator
from contextlib import closing

from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.plan import Plan
from ntkpipe.storage import layout
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import ORIGIN_TASK, PREPARE_STAGE, PREPARE_TASK
from ntkpipe.storage.fencing import FencedStore
from ntkpipe.storage.garbage import FAILURE, Garbage, find_garbage, remove_empty_folders, remove_garbage
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock, current_epoch, liveness, read_claim
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.segments import Name
from ntkpipe.storage.solutions import SOLVE_STAGE, committed_as
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.stores.writable import open_for_writing
from ntkpipe.storage.verify import Checked, verify_metadata, verify_segments, verify_tasks
from ntkpipe.workers.tasks import ANALYZE_STAGE

OWNERS = {
    layout.ANALYSES: ANALYZE_STAGE,
    layout.FACTORS: SOLVE_STAGE,
    layout.SOLUTIONS: SOLVE_STAGE,
    layout.SOLVER: SOLVE_STAGE,
}
"""By folder of a run, the stage whose tasks leave small objects there."""


def verify(url: str | os.PathLike[str], *, repair: bool = False) -> Iterator[Checked]:
    """Check what a run has stored: its metadata, its receipts, and every chunk and object against its receipt.

    Memory is O(chunk) for each of a few threads. What has no receipt is not looked at.

    Args:
        url: Of the run.
        repair: Take back the receipts of damaged tasks, once all has been looked at or the caller has seen enough, so
            that :func:`resume` computes them again.

    Raises:
        NotFoundError: There is no run.
        StorageError: The manifest is damaged, so that nothing else can be understood; or the store has ceased to answer,
            which is no damage.
        RunLockedError: There is something to repair and a driver is working on the run.
    """
    store = open_store(url)
    manifest = Manifest.read(store)
    if not repair:
        yield from _checks(store, manifest, Ledger(store))
        return
    config = load_config(manifest.config, stored=True)
    store = open_for_writing(url, config.store)
    with EpochLock(store, config.store.lease_seconds) as lock:
        fenced = FencedStore(store, lock.epoch)
        ledger = Ledger(fenced)
        damaged: set[Name] = set()
        try:
            with closing(_checks(store, manifest, ledger)) as checks:
                for checked in checks:
                    for finding in checked.findings:
                        if finding.stage == layout.SEGMENTS:
                            ledger.mend_segment(finding.task)
                        else:
                            damaged.add((finding.stage, finding.task))
                    yield checked
        finally:
            _forget_failures(fenced, damaged)
            ledger.revoke(damaged)


def gc(url: str | os.PathLike[str], *, dry_run: bool = False) -> Garbage:
    """Remove what a run can do without: leftovers of what was killed and of what is finished. Nothing that counts.

    Args:
        url: Of the run.
        dry_run: Only look; may be done while a driver works, whose own unfinished work is then found too.

    Returns:
        What was removed, or would be, and what lies in the run that no run has written.

    Raises:
        NotFoundError: There is no run.
        StorageError: A receipt is damaged, so that nobody knows what belongs to it.
        RunLockedError: A driver is working on the run.
    """
    store = open_store(url)
    manifest = Manifest.read(store)
    if dry_run:
        epoch = current_epoch(store)
        claim = read_claim(store, epoch) if epoch else None
        # Whoever removes garbage has the next epoch, unless somebody works on the run.
        is_free = claim is not None and liveness(claim) in ("released", "dead")
        return _garbage(store, manifest, epoch + is_free)
    config = load_config(manifest.config, stored=True)
    store = open_for_writing(url, config.store)
    with EpochLock(store, config.store.lease_seconds) as lock:
        removed = remove_garbage(FencedStore(store, lock.epoch), _garbage(store, manifest, lock.epoch))
        if isinstance(store, LocalRunStore):
            remove_empty_folders(store.root)
        return removed


def _checks(store: AbstractStore, manifest: Manifest, ledger: Ledger) -> Generator[Checked, None, None]:
    specs = list(array_specs(manifest.geometry))
    yield from verify_segments(ledger)
    # A run that has committed anything has been prepared.
    if ledger.stages():
        yield from verify_metadata(store, manifest, specs)
    yield from verify_tasks(ChunkStore(store, read_only=True, specs=specs), ledger, _planned(manifest))


def _forget_failures(store: AbstractStore, names: set[Name]) -> None:
    """Remove what went wrong with tasks before they were finished: now they are to be done, and have not failed."""
    if names:
        found = (FAILURE.fullmatch(key) for key in store.names(layout.FAILED))
        store.delete_many(
            match.group() for match in found if match and committed_as(match["stage"], match["task"]) in names
        )


def _garbage(store: AbstractStore, manifest: Manifest, epoch: int) -> Garbage:
    return find_garbage(store, array_specs(manifest.geometry), dict(_planned(manifest)), OWNERS, epoch)


def _planned(manifest: Manifest) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the stages of a run with the ids of their tasks."""
    plan = Plan(load_config(manifest.config, stored=True), manifest.geometry)
    yield PREPARE_STAGE, frozenset((PREPARE_TASK, ORIGIN_TASK))
    for stage in plan.stages:
        yield stage, frozenset(task.id for task in plan.tasks(stage))
