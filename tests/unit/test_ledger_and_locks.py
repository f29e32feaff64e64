"""Receipts commit tasks once; epochs let one driver work at a time."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from ntkpipe.configs.errors import ChunkNotReadyError, RunLockedError, StorageError
from ntkpipe.storage import layout
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import EpochLock, current_epoch, liveness, read_claim
from ntkpipe.storage.records import Receipt
from ntkpipe.storage.stores.registry import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run")


def receipt(task="train/00000000", worker="w"):
    return Receipt(stage="features", task=task, chunks=(), seconds=0.5, worker=worker)


def test_a_task_is_committed_once(store):
    ledger = Ledger(store)
    assert not ledger.is_committed("features", "train/00000000")
    assert ledger.commit(receipt())
    assert not ledger.commit(receipt(worker="other"))
    assert ledger.receipt("features", "train/00000000").worker == "w"
    assert Ledger(store).committed("features") == {"train/00000000"}


def test_commits_of_others_are_seen(store):
    reader = Ledger(store)
    with pytest.raises(ChunkNotReadyError, match="features task train/00000000 is not committed"):
        reader.require("features", "train/00000000")
    Ledger(store).commit(receipt())
    reader.require("features", "train/00000000")


def test_a_revoked_task_counts_as_not_done(store):
    ledger = Ledger(store)
    ledger.commit(receipt())
    ledger.revoke("features", "train/00000000")
    assert not ledger.is_committed("features", "train/00000000")
    assert ledger.commit(receipt())


def test_a_receipt_of_another_version_is_refused(store):
    store.put(
        layout.receipt("features", "x"), receipt("x").encode().replace(b'"schema_version": 2', b'"schema_version": 9')
    )
    with pytest.raises(StorageError, match="written by another version"):
        Ledger(store).receipt("features", "x")


def test_epochs_count_up_and_a_released_run_is_free(store):
    for expected in (1, 2, 3):
        with EpochLock(store, 60) as lock:
            assert lock.epoch == expected
            lock.check()
    assert current_epoch(store) == 3
    assert liveness(read_claim(store, 3)) == "released"


def test_a_living_owner_keeps_the_run(store):
    with EpochLock(store, 60), pytest.raises(RunLockedError, match="being worked on by process"), EpochLock(store, 60):
        pass


def test_the_run_of_a_dead_process_is_free_at_once(store):
    program = (
        "import os, sys; from ntkpipe.storage.locks import EpochLock; from ntkpipe.storage.stores.registry import open_store\n"
        "EpochLock(open_store(sys.argv[1]), 3600).__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, store.url], check=False)
    assert liveness(read_claim(store, 1)) == "dead"
    with EpochLock(store, 60) as lock:
        assert lock.epoch == 2


def claim_of_another_machine(store, silent_seconds):
    lock = EpochLock(store, 60)
    lock.epoch = 1
    claim = lock._claim().model_copy(update={"host": "elsewhere", "alive_at": time.time() - silent_seconds})
    store.put_new(layout.epoch(1), claim.encode())


def test_an_owner_on_another_machine_keeps_the_run_for_its_lease(store):
    claim_of_another_machine(store, 50)
    with pytest.raises(RunLockedError, match=r"on elsewhere .*last sign of life 50 s ago"), EpochLock(store, 60):
        pass


def test_an_owner_on_another_machine_that_is_silent_loses_the_run(store):
    claim_of_another_machine(store, 70)
    with EpochLock(store, 60) as lock:
        assert lock.epoch == 2


def test_a_superseded_driver_stops(store):
    with EpochLock(store, 60) as lock:
        store.put_new(layout.epoch(2), lock._claim().encode())
        with pytest.raises(RunLockedError, match="epoch 2 has taken over"):
            lock.check()


def test_a_heartbeat_is_renewed(store):
    with EpochLock(store, 0.3):
        first = read_claim(store, 1).alive_at
        deadline = time.monotonic() + 20
        while read_claim(store, 1).alive_at <= first and time.monotonic() < deadline:
            time.sleep(0.05)
        assert read_claim(store, 1).alive_at > first


def test_of_many_drivers_one_gets_the_run(store):
    barrier, won = threading.Barrier(6), []

    def start():
        barrier.wait()
        with contextlib.suppress(RunLockedError):
            won.append(EpochLock(store, 60).__enter__())

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].__exit__()


def test_a_reused_process_id_is_not_the_owner(store):
    with EpochLock(store, 60):
        claim = read_claim(store, 1)
        assert claim.process == os.getpid()
        assert liveness(claim) == "alive"
        assert liveness(claim.model_copy(update={"process_started": "1"})) == "dead"
