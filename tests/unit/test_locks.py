"""Epochs let one driver work at a time."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from ntkpipe.configs.errors import RunLockedError, StorageError
from ntkpipe.storage import fencing, layout
from ntkpipe.storage.fencing import FencedStore
from ntkpipe.storage.locks import EpochLock, current_epoch, liveness, read_claim, silent_seconds
from ntkpipe.storage.stores.registry import open_store

LEASE_SECONDS = 600
"""Of owners that are silent for a hundred seconds more or less: a busy machine may need some of them to look."""


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run")


def test_epochs_count_up_and_a_released_run_is_free(store):
    for expected in (1, 2, 3):
        with EpochLock(store, 60) as lock:
            assert lock.epoch == expected
            lock.check()
    assert current_epoch(store) == 3
    assert liveness(read_claim(store, 3)) == "released"


def test_what_others_leave_beside_epochs_is_none(store):
    for name in ("epoch-old.json", "epoch-000009.json~", "epoch-.json"):
        store.put(f"{layout.LOCK}/{name}", b"")
    assert current_epoch(store) == 0
    with EpochLock(store, 60) as lock:
        assert lock.epoch == current_epoch(store) == 1


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


def claim_of_another_machine(store, silent_seconds, clock_error=0.0):
    """Let another machine, whose clock is wrong, have given its last sign of life so long ago by the store's clock."""
    lock = EpochLock(store, LEASE_SECONDS)
    lock.epoch = 1
    claim = lock._claim().model_copy(update={"host": "elsewhere", "alive_at": time.time() + clock_error})
    store.put_new(layout.epoch(1), claim.encode())
    at = time.time() - silent_seconds
    os.utime(store.root / layout.epoch(1), (at, at))


@pytest.mark.parametrize("clock_error", [0.0, 7200.0, -7200.0])
def test_an_owner_on_another_machine_keeps_the_run_for_its_lease_whatever_its_clock_says(
    store, clock_error, fault_table
):
    claim_of_another_machine(store, LEASE_SECONDS - 100, clock_error)
    with pytest.raises(RunLockedError, match=r"on elsewhere .*last sign of life 5\d\d s ago"), EpochLock(store, 60):
        pass
    fault_table.add("clocks that differ by hours", 1, 1, 0)


@pytest.mark.parametrize("clock_error", [0.0, 7200.0, -7200.0])
def test_an_owner_on_another_machine_that_is_silent_loses_the_run_whatever_its_clock_says(
    store, clock_error, fault_table
):
    claim_of_another_machine(store, LEASE_SECONDS + 100, clock_error)
    with EpochLock(store, 60) as lock:
        assert lock.epoch == 2
    fault_table.add("clocks that differ by hours", 1, 1, 0)


def test_what_counts_of_an_owner_is_its_last_heartbeat(store):
    claim_of_another_machine(store, 7200)
    claim = read_claim(store, 1)
    store.put(layout.heartbeat(1), claim.encode())
    assert silent_seconds(store, 1) < 30
    with pytest.raises(RunLockedError), EpochLock(store, 60):
        pass


def test_a_process_of_this_machine_that_is_stopped_loses_the_run_after_its_lease(store):
    with EpochLock(store, 60):
        at = time.time() - 70
        os.utime(store.root / layout.epoch(1), (at, at))
        with EpochLock(store, 60) as lock:
            assert lock.epoch == 2


def test_looking_at_the_clock_leaves_nothing_behind(store):
    claim_of_another_machine(store, 0)
    silent_seconds(store, 1)
    assert store.names(layout.LOCK) == [layout.epoch(1)]


def test_a_superseded_driver_stops(store):
    with EpochLock(store, 60) as lock:
        store.put_new(layout.epoch(2), lock._claim().encode())
        with pytest.raises(RunLockedError, match="epoch 2 has taken over"):
            lock.check()
        with pytest.raises(RunLockedError, match="epoch 2 has taken over"):
            lock.look()


def test_a_superseded_driver_leaves_without_writing(store):
    with EpochLock(store, 0.3) as lock:
        store.put_new(layout.epoch(2), lock._claim().encode())
        # A beat may be under way; the next one finds the successor, and is the last.
        lock._thread.join(60)
        assert not lock._thread.is_alive()
        before = {key: store.get(key) for key in store.names(layout.LOCK)}
    assert {key: store.get(key) for key in store.names(layout.LOCK)} == before


def test_every_claim_has_content_of_its_own(store):
    lock = EpochLock(store, 60)
    assert lock._claim().nonce != lock._claim().nonce


def test_a_store_that_does_not_answer_is_given_a_lease(store, monkeypatch):
    def silent(*_):
        raise StorageError("no answer")

    # Its first beat is ten minutes away.
    with EpochLock(store, 3600) as lock, monkeypatch.context() as patch:
        patch.setattr(store, "exists", silent)
        with pytest.raises(StorageError, match="no answer"):
            lock.check()
        lock.look()
        lock._renewed_at -= 3601
        with pytest.raises(StorageError, match="no answer"):
            lock.look()
    assert liveness(read_claim(store, 1)) == "released"


def test_a_fenced_store_is_read_freely_and_written_to_only_without_a_successor(store):
    with EpochLock(store, 60) as lock:
        fenced = FencedStore(store, lock.epoch)
        fenced.put("a", b"1")
        assert fenced.put_new("b", b"2")
        fenced.copy(store, "a", "c")
        fenced.delete("b")
        store.put_new(layout.epoch(2), b"{}")
        writes = [
            lambda: fenced.put("a", b"3"),
            lambda: fenced.put_new("d", b""),
            lambda: fenced.delete("a"),
            lambda: fenced.copy(store, "a", "e"),
            lambda: fenced.delete_many(["a"]),
            fenced.now,
        ]
        before = store.names("")
        for write in writes:
            with pytest.raises(RunLockedError, match="epoch 2 has taken over"):
                write()
        assert store.names("") == before
        assert fenced.get("a") == fenced.get_writable("a") == b"1"
        assert fenced.exists("c")
        assert not fenced.exists("b")
        assert fenced.sizes("") == store.sizes("")
        assert dict(fenced.get_many(["a"])) == {"a": b"1"}
        assert fenced.modified("a") == store.modified("a")


def test_a_look_counts_for_a_moment_where_only_ones_own_objects_are_replaced(store, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(fencing, "_now", lambda: now)
    with EpochLock(store, 60) as lock:
        fenced = FencedStore(store, lock.epoch, trust_seconds=0.3)
        fenced.put("a", b"1")
        store.put_new(layout.epoch(2), b"{}")
        fenced.put("a", b"2")
        for write in (lambda: fenced.put_new("b", b""), lambda: fenced.delete("a")):
            with pytest.raises(RunLockedError):
                write()
        now += 0.4
        with pytest.raises(RunLockedError):
            fenced.put("a", b"3")
        assert store.get("a") == b"2"


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
