"""What is made in the background: once, within its memory, and not for nobody."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from ntkpipe.configs.errors import ChunkNotReadyError
from ntkpipe.pipeline.pictures.workshop import AT_ONCE, Building, Workshop


@dataclass(frozen=True)
class Thing:
    name: str
    nbytes: int = 10
    stale_after: float = float("inf")


@pytest.fixture
def workshop():
    made = Workshop(35, wait_seconds=10)
    yield made
    made.close()


def until(ask, seconds=20):
    """Ask until it is ready."""
    limit = time.monotonic() + seconds
    while isinstance(found := ask(), Building):
        assert time.monotonic() < limit
        time.sleep(0.005)
    return found


def test_a_thing_is_made_once_however_many_ask(workshop):
    made = []

    def make(progress):
        time.sleep(0.05)
        made.append(1)
        return Thing("a")

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: workshop.ask("a", make), range(32)))

    assert found == [Thing("a")] * 32
    assert len(made) == 1


def test_who_is_patient_waits_until_it_is_ready():
    workshop = Workshop(100, wait_seconds=0.0)

    def make(progress):
        time.sleep(0.1)
        return Thing("a")

    assert isinstance(workshop.ask("a", make), Building)
    assert workshop.ask("a", make, patient=True) == Thing("a")
    workshop.close()


def test_who_asks_early_is_told_how_far_it_is():
    workshop, go = Workshop(100, wait_seconds=0.0), threading.Event()

    def make(progress):
        progress.expect(4)
        progress.advance()
        go.wait(20)
        return Thing("a")

    try:
        until(lambda: "begun" if workshop.ask("a", make) == Building(0.25) else Building(0.0))
        go.set()
        assert until(lambda: workshop.ask("a", make)) == Thing("a")
    finally:
        go.set()
        workshop.close()


def test_what_was_asked_for_least_recently_is_dropped_for_memory(workshop):
    for name in "abc":
        workshop.ask(name, lambda progress, name=name: Thing(name))
    workshop.ask("a", lambda progress: pytest.fail("it is kept"))

    workshop.ask("d", lambda progress: Thing("d"))

    assert workshop.num_bytes == 30
    assert workshop.ask("a", lambda progress: Thing("again")) == Thing("a")
    assert workshop.ask("b", lambda progress: Thing("again")) == Thing("again")


def test_a_failure_is_told_once_and_then_tried_again():
    workshop, tries = Workshop(100, wait_seconds=0.0), []

    def make(progress):
        tries.append(1)
        if len(tries) == 1:
            raise ChunkNotReadyError("not yet", tasks=("a",))
        return Thing("a")

    try:
        with pytest.raises(ChunkNotReadyError, match="not yet") as caught:
            until(lambda: workshop.ask("a", make))
        assert caught.value.tasks == ("a",)
        assert until(lambda: workshop.ask("a", make)) == Thing("a")
        assert len(tries) == 2
    finally:
        workshop.close()


def test_what_is_out_of_date_is_shown_until_there_is_a_newer_one():
    workshop, go = Workshop(100, wait_seconds=10), threading.Event()

    def newer(progress):
        go.wait(20)
        return Thing("new")

    try:
        workshop.ask("a", lambda progress: Thing("old", stale_after=0.0))
        assert workshop.ask("a", newer).name == "old"
        go.set()
        until(lambda: "now" if workshop.ask("a", newer).name == "new" else Building(0.0))
    finally:
        go.set()
        workshop.close()


def test_what_nobody_asks_for_any_more_is_given_up():
    workshop, ended = Workshop(100, wait_seconds=0.0, patience_seconds=0.05), threading.Event()

    def make(progress):
        try:
            for _ in range(2000):
                progress.advance()
                time.sleep(0.005)
        finally:
            ended.set()
        return Thing("a")

    try:
        assert isinstance(workshop.ask("a", make), Building)
        assert ended.wait(5)
        assert workshop.num_bytes == 0
    finally:
        workshop.close()


def test_closing_gives_up_what_is_being_made():
    workshop, begun, ended = Workshop(100, wait_seconds=0.0), threading.Event(), threading.Event()

    def make(progress):
        try:
            while True:
                begun.set()
                progress.advance()
                time.sleep(0.001)
        finally:
            ended.set()

    workshop.ask("a", make)
    assert begun.wait(5)
    workshop.close()
    assert ended.is_set()


def test_closing_does_not_wait_for_what_does_not_look_whether_it_is_wanted():
    workshop, begun, go = Workshop(100, wait_seconds=0.0), threading.Semaphore(0), threading.Event()

    def make(progress):
        begun.release()
        go.wait(20)
        return Thing("a")

    try:
        for name in range(AT_ONCE + 1):
            assert isinstance(workshop.ask(name, make), Building)
        assert all(begun.acquire(timeout=5) for _ in range(AT_ONCE))
        started = time.monotonic()
        workshop.close()
        assert time.monotonic() - started < 5
        go.set()
        assert not begun.acquire(timeout=0.2), "what had not begun was begun"
    finally:
        go.set()
