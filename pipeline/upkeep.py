"""The verbs that look after what a run has stored: verify it."""

import os
from collections.abc import Iterator

from ntkpipe.configs.loading import load_config
from ntkpipe.pipeline.plan import stages
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import PREPARE_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.records import Manifest
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.verify import Checked, verify_tasks


def verify(url: str | os.PathLike[str], *, repair: bool = False) -> Iterator[Checked]:
    """Re-read every committed chunk against its receipt.

    Args:
        url: Of the run.
        repair: Take back the receipts of damaged tasks, so that :func:`resume` computes them again.
    """
    store = open_store(url)
    manifest = Manifest.read(store)
    ledger = Ledger(store)
    checks = verify_tasks(ChunkStore(store), ledger, (PREPARE_STAGE, *stages(manifest.geometry)))
    if not repair:
        yield from checks
        return
    with EpochLock(store, load_config(manifest.config).store.lease_seconds):
        for checked in checks:
            for stage, task in {(finding.stage, finding.task) for finding in checked.findings}:
                ledger.revoke(stage, task)
            yield checked
