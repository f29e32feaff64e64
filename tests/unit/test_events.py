"""The log of events: what is written is read back, damaged or not."""

import inspect
import json
import math
import re
import threading

import pytest
from logs import write_log

from ntkpipe.configs.errors import StorageError
from ntkpipe.pipeline import events
from ntkpipe.pipeline.events import EventLog, Watchers, read_events
from ntkpipe.pipeline.scheduling import fleet
from ntkpipe.storage import layout
from ntkpipe.storage.stores.registry import open_store

DAMAGE = [
    b'{"time": 3.0, "event": "com',
    b"[1, 2]",
    b'{"time": "noon", "event": "commit"}',
    b'{"time": -1, "event": "commit"}',
    b'{"time": NaN, "event": "commit"}',
    b'{"time": 1e308, "event": "commit"}',
    b'{"time": 1' + b"0" * 400 + b', "event": "commit"}',
    b'{"time": true, "event": "commit"}',
    b'{"time": 3.0, "event": 7}',
    b'{"time": 3.0}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
]


def test_events_are_read_in_the_order_in_which_they_were_written_over_all_epochs(tmp_path):
    store = open_store(tmp_path / "run")
    for epoch in (1, 2, 10):
        log = EventLog(store, epoch)
        for number in range(3):
            log.add("commit", stage="kernel", task=f"{epoch}-{number}")
            log.flush()
    found = list(read_events(store))
    assert [event.text("task") for event in found] == [f"{e}-{n}" for e in (1, 2, 10) for n in range(3)]
    assert [event.epoch for event in found] == [1] * 3 + [2] * 3 + [10] * 3
    assert all(event.name == "commit" for event in found)


def test_the_states_of_workers_that_are_documented_are_those_that_are_told():
    documented = re.search(r"``state`` \(([^)]*)\)", events.__doc__)[1]
    told = re.findall(r'self\._(?:say|end)\(\w+, "(\w+)"', inspect.getsource(fleet))
    assert len(told) > 5
    assert set(documented.split(", ")) == set(told)


def test_segments_are_read_by_number_even_where_their_names_are_not_in_that_order(tmp_path):
    for number in (999_999, 1_000_000):
        path = tmp_path / layout.events(1, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"time": 1.0, "event": str(number)}) + "\n")
    assert [event.name for event in read_events(open_store(tmp_path))] == ["999999", "1000000"]


@pytest.mark.parametrize("line", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path, line):
    write_log(tmp_path, 1, [{"time": 1.0, "event": "start"}, {"time": 2.0, "event": "commit"}])
    path = tmp_path / layout.events(1, 1)
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, second, b""]))
    damaged = []
    assert [event.name for event in read_events(open_store(tmp_path), damaged.append)] == ["start", "commit"]
    assert damaged == [f"{layout.events(1, 1)}, line 2, cannot be read"]


def test_a_segment_that_is_missing_is_named(tmp_path):
    write_log(tmp_path, 1, [{"time": float(at), "event": "commit"} for at in range(4)], per_segment=1)
    (tmp_path / layout.events(1, 2)).unlink()
    damaged = []
    assert [event.time for event in read_events(open_store(tmp_path), damaged.append)] == [0.0, 2.0, 3.0]
    assert damaged == [f"{layout.events(1, 2)} is missing"]


def test_nothing_is_certain_of_a_field(tmp_path):
    odd = {"minus": -1, "text": "5", "nothing": None, "truth": True, "list": [1], "large": 1e300, "nan": math.nan}
    write_log(tmp_path, 1, [{"time": 1.0, "event": "commit", "good": 5} | odd])
    (event,) = read_events(open_store(tmp_path))
    assert event.number("good") == 5
    assert event.text("text") == "5"
    for name in (*odd, "absent"):
        assert event.number(name, 7.0) == 7.0
        assert event.text(name, "other") == ("5" if name == "text" else "other")


def test_a_store_that_takes_nothing_loses_no_event(tmp_path, monkeypatch):
    store = open_store(tmp_path / "run")
    log, put = EventLog(store, 1), type(store).put

    def full(self, key, data):
        raise StorageError("the disk is full")

    log.add("commit", task="a")
    monkeypatch.setattr(type(store), "put", full)
    with pytest.raises(StorageError):
        log.flush()
    log.add("commit", task="b")
    monkeypatch.setattr(type(store), "put", put)
    log.flush()
    assert [event.text("task") for event in read_events(store)] == ["a", "b"]


def test_no_event_is_lost_or_doubled_while_others_are_written(tmp_path):
    store = open_store(tmp_path / "run")
    log, is_over = EventLog(store, 1), threading.Event()

    def write():
        while not is_over.is_set():
            log.flush()

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for number in range(2000):
        log.add("commit", task=str(number))
    is_over.set()
    for writer in writers:
        writer.join()
    log.flush()
    damaged = []
    assert [event.text("task") for event in read_events(store, damaged.append)] == [str(n) for n in range(2000)]
    assert damaged == []


def test_events_are_added_while_the_store_takes_its_time(tmp_path, monkeypatch):
    store = open_store(tmp_path / "run")
    log, put, is_in, may_go_on = EventLog(store, 1), type(store).put, threading.Event(), threading.Event()

    def slow(self, key, data):
        is_in.set()
        assert may_go_on.wait(10)
        put(self, key, data)

    log.add("commit", task="a")
    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put", slow)
        writer = threading.Thread(target=log.flush)
        writer.start()
        assert is_in.wait(10)
        log.add("commit", task="b")
        may_go_on.set()
        writer.join()
    assert [event.text("task") for event in read_events(store)] == ["a"]
    log.flush()
    assert [event.text("task") for event in read_events(store)] == ["a", "b"]


def test_listeners_hear_what_is_recorded_from_the_moment_they_listen(tmp_path):
    log, heard = EventLog(open_store(tmp_path / "run"), 1), []
    log.add("start", process=1)
    log.listen(lambda event, fields: heard.append((event, dict(fields))))
    log.add("commit", stage="kernel", bytes=3)
    assert heard == [("commit", {"stage": "kernel", "bytes": 3})]


class Told:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *values: self.calls.append((name, *values))


def test_all_watchers_are_told_everything():
    both = Told(), Told()
    watchers = Watchers(*both)
    watchers.stage("kernel", 1, 2)
    watchers.task("kernel", 30)
    watchers.attempt_failed("kernel")
    watchers.workers(1, 2)
    watchers.note("hello")
    expected = [
        ("stage", "kernel", 1, 2),
        ("task", "kernel", 30),
        ("attempt_failed", "kernel"),
        ("workers", 1, 2),
        ("note", "hello"),
    ]
    assert [told.calls for told in both] == [expected, expected]
