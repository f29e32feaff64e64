"""Whether a run only adds samples to another one: the same configuration, and every old split the start of the new one."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ntkpipe.configs.canonical import differences
from ntkpipe.configs.errors import NotFoundError, RunMismatchError, StorageError
from ntkpipe.pipeline.identity import inputs_of
from ntkpipe.pipeline.manifests import describe
from ntkpipe.pipeline.query.run import Run
from ntkpipe.pipeline.query.stored import StoredRunReader
from ntkpipe.storage.features import FEATURES_STAGE
from ntkpipe.storage.grid import shards
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores.base import AbstractStore
from ntkpipe.workers.probing.probe import Probe
from ntkpipe.workers.sources.data import SplitSource, input_digest

SOURCES = "config.data.splits."
PAIRS = "config.data.pairs"


def check_extension(store: AbstractStore, old: Manifest, asked: Manifest, probe: Probe) -> None:
    """Refuse a run that is more than an old one with further samples.

    Args:
        store: Of the old run.
        old: What it is.
        asked: What is to be computed.
        probe: From which the latter was made.

    Raises:
        RunMismatchError: Something else differs, or a split does not begin with the old samples; the first one that
            differs is named.
    """
    found = [difference for difference in _other_differences(old, asked) if not _adds_pairs(*difference)]
    if found:
        raise RunMismatchError(
            f"{store.url} cannot be extended: more than the samples would change. Differences:{describe(found)}\n"
            f"For a run with other settings use `ntkpipe resume {store.url} --fork OUT --set ...`."
        )
    for split in old.geometry.splits:
        _check_split(store, old, split, probe.splits[split])


def _other_differences(old: Manifest, asked: Manifest) -> Iterator[tuple[str, Any, Any]]:
    """Yield what differs apart from the samples, and from what follows from how many there are."""
    one, other = (
        {key: value for key, value in manifest.identity().items() if key != "geometry"}
        | {"training split": manifest.geometry.train_split}
        for manifest in (old, asked)
    )
    for path, before, now in differences(one, other):
        removed = now is None and path.removeprefix(SOURCES) in old.geometry.splits
        if removed or not path.startswith((SOURCES, "fingerprints.data.")):
            yield path, before, now


def _adds_pairs(path: str, before: Any, now: Any) -> bool:
    return path == PAIRS and before is not None and now is not None and all(pair in now for pair in before)


def _check_split(store: AbstractStore, old: Manifest, split: str, source: SplitSource) -> None:
    num = old.geometry.splits[split].num_samples
    if len(source) < num:
        raise _mismatch(store, split, f"it had {num:,} samples and has {len(source):,} now")
    rows = old.geometry.shard_rows
    digests = [input_digest(source.raw(range(shard.start, shard.stop))) for shard in shards(split, num, rows)]
    if source.fingerprint(digests, num) == old.fingerprints[f"data.{split}"]:
        return
    raise _mismatch(store, split, _first_difference(store, old, split, source, digests))


def _first_difference(
    store: AbstractStore, old: Manifest, split: str, source: SplitSource, digests: Sequence[str]
) -> str:
    """Return what the first difference of a split that is not the start of another is, as far as the old run tells."""
    try:
        run = Run(StoredRunReader(store))
        ids, labels = run.ids(split), run.labels(split)
    except StorageError as error:
        return f"ids, labels or inputs differ; the old ones cannot be read: {error.message}"
    for position, (before, now) in enumerate(zip(ids, source.ids, strict=False)):
        if before != now:
            return f"the id at position {position} was {before!r} and is {now!r} now"
    if (labels is None) != (source.labels is None):
        return "it has gained or lost its labels"
    if labels is not None and source.labels is not None:
        now_labels = source.labels[: len(ids)].numpy()
        if labels.shape != now_labels.shape or labels.dtype != now_labels.dtype:
            return f"its labels were {labels.dtype} of shape {labels.shape[1:]}, and are others now"
        changed = np.flatnonzero((labels != now_labels).reshape(len(ids), -1).any(axis=1))
        if len(changed):
            at = int(changed[0])
            return f"the label of sample {ids[at]!r} (position {at}) was {labels[at]} and is {now_labels[at]} now"
    return _first_input(store, old, split, ids, digests)


def _first_input(store: AbstractStore, old: Manifest, split: str, ids: Sequence[str], digests: Sequence[str]) -> str:
    ledger = Ledger(store)
    known = ledger.committed(FEATURES_STAGE)
    for shard, now in zip(shards(split, len(ids), old.geometry.shard_rows), digests, strict=True):
        before = _stored_digest(ledger, shard.task) if shard.task in known else None
        if before is not None and before != now:
            return (
                f"the inputs of samples {ids[shard.start]!r} to {ids[shard.stop - 1]!r} (positions {shard.start} to "
                f"{shard.stop - 1}) are others now"
            )
    return "its inputs are others now; which ones, the old run's receipts do not tell"


def _stored_digest(ledger: Ledger, task: str) -> str | None:
    try:
        return inputs_of(ledger.receipt(FEATURES_STAGE, task).made_from)
    except (NotFoundError, StorageError):
        return None


def _mismatch(store: AbstractStore, split: str, what: str) -> RunMismatchError:
    return RunMismatchError(
        f"{store.url} cannot be extended: split {split!r} does not begin with its samples: {what}. New samples go behind the "
        f"old ones, which stay as they are. `ntkpipe resume {store.url} --fork OUT` takes over what is still valid."
    )
