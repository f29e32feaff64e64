"""``run --or-resume``: what a job is that may be started again and again."""

import threading
import time

import golden
import pytest
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import RunLockedError, RunMismatchError
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import Claim, current_epoch
from ntkpipe.storage.stores.registry import open_store

CONFIG = golden.config(kernels=[{"kind": "ck"}], solve=[])


def claim(store, lease_seconds, key=None):
    """Write a sign of life of a driver on another machine."""
    found = Claim(
        epoch=1,
        host="another-machine",
        boot_id="",
        process=1,
        process_started="",
        lease_seconds=lease_seconds,
        alive_at=time.time(),
    )
    store.put(key or layout.epoch(1), found.encode())


def test_it_starts_a_run_and_later_finishes_it_with_the_new_runtime_fields(tmp_path):
    whole = tmp_path / "whole"
    ntkpipe.run(CONFIG, whole, or_resume=True)
    hashes, store = chunk_hashes(whole), open_store(whole)
    task = min(Ledger(store).committed("kernel"))
    Ledger(store).revoke({("kernel", task)})
    ntkpipe.run(CONFIG, whole, overrides=["store.lease_seconds=7", "resources.batch_size=1"], or_resume=True)
    assert chunk_hashes(whole) == hashes
    assert current_epoch(store) == 2
    assert Claim.parse(store.read(layout.epoch(2)), "").lease_seconds == 7
    ntkpipe.run(CONFIG, whole, or_resume=True)
    assert ntkpipe.open_run(whole).status().state == "finished"


def test_a_run_of_other_numbers_is_refused(tmp_path):
    ntkpipe.run(CONFIG, tmp_path / "run")
    with pytest.raises(RunMismatchError, match=r"config\.store\.shard_rows: stored 2, now 3"):
        ntkpipe.run(CONFIG, tmp_path / "run", overrides=["store.shard_rows=3"], or_resume=True)


def test_the_lease_of_a_driver_that_was_lost_elsewhere_is_waited_for(tmp_path):
    store = open_store(tmp_path / "run")
    # Longer than a process takes that has yet to import what a run needs.
    claim(store, 5.0)
    with pytest.raises(RunLockedError):
        ntkpipe.run(CONFIG, tmp_path / "run")
    found = ntkpipe.run(CONFIG, tmp_path / "run", or_resume=True)
    assert found.status().epoch == 2


def test_a_driver_that_lives_elsewhere_is_not_waited_for(tmp_path):
    store, stop = open_store(tmp_path / "run"), threading.Event()
    claim(store, 60.0)

    def live():
        while not stop.wait(0.2):
            claim(store, 60.0, layout.heartbeat(1))

    other = threading.Thread(target=live)
    other.start()
    try:
        with pytest.raises(RunLockedError, match="another-machine"):
            ntkpipe.run(CONFIG, tmp_path / "run", or_resume=True)
    finally:
        stop.set()
        other.join()
