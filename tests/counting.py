"""What a run has computed itself, and what it has taken over from another one."""

from collections import Counter

import ntkpipe
from ntkpipe.pipeline.plan import stages
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.stores.registry import open_store


def computed(url):
    """Return how many tasks of each stage a run has computed, and how many it has taken over."""
    run, here, there = ntkpipe.open_run(url), Counter(), Counter()
    ledger = Ledger(open_store(url))
    for stage in stages(run.manifest.geometry):
        for receipt in ledger.receipts(stage):
            (there if receipt.origin else here)[stage] += 1
    return dict(here), dict(there)


def is_clean(url):
    return not any(checked.findings for checked in ntkpipe.verify(url))
