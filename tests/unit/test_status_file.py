"""The document that tells how fast a run is: written by its driver only, and by nobody's leave to end the run."""

import dataclasses
import json
import threading

import pytest
from processes import wait_for

from ntkpipe.configs.errors import RunLockedError, StorageError
from ntkpipe.pipeline.events import EventLog, read_events
from ntkpipe.pipeline.status_file import StatusFile
from ntkpipe.storage import layout
from ntkpipe.storage.documents import seal_of
from ntkpipe.storage.fencing import FencedStore
from ntkpipe.storage.live import LiveStatus
from ntkpipe.storage.locks import EpochLock
from ntkpipe.storage.stores.registry import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "run")


def work(status):
    """Tell a status of a few tasks."""
    status.workers(1, 2)
    status.stage("features", 3, 10)
    for _ in range(4):
        status.task("features", 1000)
    status.attempt_failed("features")
    status.hear("failure", {"stage": "features", "verdict": "aside"})
    status.hear("failure", {"stage": "features", "verdict": "again"})
    status.note("nothing of importance")


def test_it_says_what_was_done_and_how_fast(store):
    clock = iter(range(100))
    status = StatusFile(store, 7, EventLog(store, 7), clock=lambda: float(next(clock)))
    work(status)
    status.write()
    found = LiveStatus.read(store)
    assert (found.epoch, found.ended, found.workers_ready, found.workers_wanted) == (7, False, 1, 2)
    (stage,) = found.stages
    assert (stage.stage, stage.done, stage.total, stage.num_bytes) == ("features", 7, 10, 4000)
    assert (stage.failed_attempts, stage.set_aside) == (1, 1)
    assert 0 < stage.tasks_per_second < 1
    assert stage.bytes_per_second == pytest.approx(1000 * stage.tasks_per_second, rel=1e-3)
    assert stage.seconds_left > 3


def test_it_is_written_while_nothing_happens_and_at_the_end(store):
    with StatusFile(store, 1, EventLog(store, 1), seconds=0.01) as status:
        wait_for(lambda: LiveStatus.read(store) is not None, 10, 0.01)
        assert not LiveStatus.read(store).ended
        work(status)
    assert LiveStatus.read(store).ended
    assert LiveStatus.read(store).stages[0].done == 7
    assert not [thread for thread in threading.enumerate() if thread.name == "ntkpipe-status"]


def test_a_store_that_is_full_for_a_while_ends_nothing(store, monkeypatch):
    put, refused, is_full = type(store).put, [], True

    def filling(self, key, data):
        if key == layout.STATUS and is_full:
            refused.append(key)
            raise StorageError("the disk is full")
        put(self, key, data)

    monkeypatch.setattr(type(store), "put", filling)
    with StatusFile(store, 1, EventLog(store, 1), seconds=0.01) as status:
        wait_for(lambda: len(refused) > 2, 10, 0.01)
        is_full = False
        wait_for(lambda: LiveStatus.read(store) is not None, 10, 0.01)
        is_full = True
        work(status)
    assert not LiveStatus.read(store).ended


def test_a_driver_that_was_replaced_does_not_overwrite_the_word_of_the_next_one(store):
    with EpochLock(store, 30.0) as first:
        fenced = FencedStore(store, first.epoch)
        log = EventLog(fenced, first.epoch)
        old = StatusFile(fenced, first.epoch, log, seconds=0.01)
        with old:
            wait_for(lambda: LiveStatus.read(store) is not None, 10, 0.01)
            assert store.put_new(layout.epoch(2), b"{}")
            log.add("commit", task="of the old one")
            new = StatusFile(FencedStore(store, 2), 2, EventLog(store, 2))
            new.write()
            with pytest.raises(RunLockedError):
                old.write()
            # Its thread has ended by itself.
            wait_for(lambda: not old._thread.is_alive(), 10, 0.01)
    assert LiveStatus.read(store).epoch == 2
    assert list(read_events(store)) == []


def test_events_are_in_the_store_soon_though_nothing_happens_after_them(store):
    log = EventLog(store, 1)
    log.add("start", process=1)
    with StatusFile(store, 1, log, seconds=0.01):
        wait_for(lambda: [event.name for event in read_events(store)] == ["start"], 10, 0.01)
        log.add("commit", task="a")
        log.add("commit", task="b")
        wait_for(lambda: [event.text("task") for event in read_events(store)] == ["", "a", "b"], 10, 0.01)


def test_events_that_a_store_does_not_take_for_a_while_are_there_later(store, monkeypatch):
    put, is_full = type(store).put, True

    def filling(self, key, data):
        if key.startswith(layout.EVENTS) and is_full:
            raise StorageError("the disk is full")
        put(self, key, data)

    monkeypatch.setattr(type(store), "put", filling)
    log = EventLog(store, 1)
    with StatusFile(store, 1, log, seconds=0.01):
        log.add("commit", task="a")
        # That of the events does not keep the other document from being written.
        wait_for(lambda: LiveStatus.read(store) is not None, 10, 0.01)
        log.add("commit", task="b")
        is_full = False
        wait_for(lambda: [event.text("task") for event in read_events(store)] == ["a", "b"], 10, 0.01)


def replace_fields(store, **changes):
    """Replace fields of the document, and seal it again if that is possible."""
    document = json.loads(store.read(layout.STATUS)) | changes
    try:
        seal = seal_of(document)
    except ValueError:  # infinity is no number of JSON
        seal = ""
    store.put(layout.STATUS, json.dumps(document | {"seal": seal}).encode())


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"null", b"[]", b'{"epoch": 1}', b"\xff" * 100, b"[" * 100_000],
    ids=["empty", "cut", "null", "list", "short", "bytes", "deep"],
)
def test_what_is_damaged_counts_as_not_there(store, damage):
    store.put(layout.STATUS, damage)
    assert LiveStatus.read(store) is None


def test_what_nobody_could_have_measured_counts_as_not_there(store):
    status = StatusFile(store, 1, EventLog(store, 1))
    work(status)
    status.write()
    (stage,) = json.loads(store.read(layout.STATUS))["stages"]
    replace_fields(store, ended=True)
    assert LiveStatus.read(store) is not None
    for changes in (
        {"stages": [stage | {"seconds_left": float("inf")}]},
        {"stages": [stage | {"tasks_per_second": float("nan")}]},
        {"stages": [stage | {"done": -1}]},
        {"workers_ready": -5},
        {"updated_at": float("-inf")},
        {"more": 1},
        {"schema_version": 99},
    ):
        status.write()
        replace_fields(store, **changes)
        assert LiveStatus.read(store) is None, changes
    status.write()
    store.put(layout.STATUS, store.read(layout.STATUS).replace(b'"done": 7', b'"done": 8'))
    assert LiveStatus.read(store) is None, "its seal is broken"


def test_the_status_of_a_run_tells_its_speed_while_its_driver_lives_and_speaks(tmp_path):
    import golden

    import ntkpipe

    run = ntkpipe.run(golden.config(), tmp_path / "run")
    store = open_store(run.url)
    assert LiveStatus.read(store).ended
    speeds = dataclasses.astuple(run.status().stages[0])[5:8]
    assert speeds == (None, None, None), "nobody works on it"
    assert run.status().workers_ready is None
    with EpochLock(store, 30.0) as lock:
        status = StatusFile(FencedStore(store, lock.epoch), lock.epoch, EventLog(store, lock.epoch))
        assert run.status().told_seconds is None, "what was said last is that of the driver before"
        work(status)
        status.write()
        found = run.status()
        assert (found.workers_ready, found.workers_wanted) == (1, 2)
        assert 0 <= found.told_seconds < 30
        stages = {stage.stage: stage for stage in found.stages}
        assert stages["features"].done == 4, "receipts count, whatever the driver says"
        assert stages["features"].tasks_per_second > 0
        assert stages["kernel"].tasks_per_second is None
        store.put(layout.STATUS, b"damaged")
        assert run.status().workers_ready is None
    gone = {piece.key for piece in ntkpipe.gc(run.url, dry_run=True).pieces}
    assert layout.STATUS not in gone
    assert layout.STATUS not in ntkpipe.gc(run.url, dry_run=True).foreign
