"""The contract of every store. A test module imports these tests and provides three fixtures.

``store`` is an empty store, ``sibling()`` opens another empty one of the same service, and ``racers`` is how many
threads race: a service may serialise those that lose by waiting.
"""

import threading
import time

import pytest

from ntkpipe.configs.errors import NotFoundError, StorageError
from ntkpipe.configs.store import StoreConfig
from ntkpipe.storage.stores.registry import open_store
from ntkpipe.storage.stores.writable import open_for_writing

ROUNDS = 50

BAD_KEYS = ("", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "a\\b", "a\0b", "a\nb", "a\x7f")
ODD_KEYS = (
    "a b",
    "a%20b",
    "100%",
    "~",
    "#1",
    "a?b",
    "p+q",
    "x:y",
    "k@0",
    "[a-b]*",
    "{c}",
    "ü",
    "a&b=c",
    "..a",
    "a.partia",
)


def test_what_is_put_is_got(store):
    store.put("a/b.json", b"1")
    store.put("a/b.json", b"22")
    assert store.get("a/b.json") == b"22"
    assert store.get("a/c.json") is None
    assert store.get("a") is None
    with pytest.raises(NotFoundError, match=r"has no a/c\.json"):
        store.read("a/c.json")


def test_what_is_got_to_be_written_to_is_the_callers_own(store):
    store.put("a", b"123")
    found = store.get_writable("a")
    assert found == b"123"
    found[0] = 0
    assert store.get("a") == b"123"
    assert store.get_writable("b") is None


@pytest.mark.parametrize("size", [0, 1, 4096, 70_000])
def test_objects_are_read_into_memory_as_far_as_it_goes(store, size):
    content = bytes(position % 251 for position in range(size))
    store.put("a/b", content)
    for room in (0, size // 2, size, size + 5):
        memory = bytearray(b"\xff" * room)
        assert store.read_into("a/b", memory) == size
        read = min(size, room)
        assert memory == content[:read] + b"\xff" * (room - read)
    assert store.read_into("a/c", bytearray(5)) is None
    assert store.read_into("a", bytearray(5)) is None


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_contents_of_any_size_come_back(store, size):
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    store.put("a", content)
    assert store.put_new("b", content)
    assert store.get("a") == store.get("b") == store.get_writable("a") == content
    assert store.sizes("") == {"a": size, "b": size}


def test_a_new_object_is_created_once(store):
    assert store.put_new("lock/1", b"first")
    assert not store.put_new("lock/1", b"second")
    assert store.get("lock/1") == b"first"
    store.delete("lock/1")
    assert store.put_new("lock/1", b"third")


def test_a_new_object_may_be_replaced_by_intent(store):
    assert store.put_new("a", b"first")
    store.put("a", b"second")
    assert not store.put_new("a", b"third")
    assert store.get("a") == b"second"


def test_objects_exist_from_their_first_byte_to_their_deletion(store):
    assert not store.exists("a/b")
    store.put("a/b", b"")
    assert store.exists("a/b")
    assert not store.exists("a")
    assert not store.exists("a/b/c")
    store.delete("a/b")
    assert not store.exists("a/b")


def test_existence_is_not_remembered(store):
    other = open_store(store.url)
    assert store.names("") == []
    assert not store.exists("a")
    other.put("a", b"1")
    assert store.exists("a")
    assert store.get("a") == b"1"
    assert store.names("") == ["a"]
    other.put("a", b"23")
    assert store.sizes("") == {"a": 2}
    assert store.get("a") == b"23"
    other.delete("a")
    assert store.get("a") is None
    assert store.modified("a") is None
    assert store.names("") == []


def test_the_store_dates_objects_by_its_own_clock(store):
    assert store.modified("a") is None
    before = store.now()
    store.put("a", b"1")
    written = store.modified("a")
    after = store.now()
    # Some services count whole seconds.
    assert int(before) <= written <= after + 1
    assert abs(time.time() - written) < 300
    assert store.names("") == ["a"]


def test_rewriting_dates_anew(store):
    store.put("a", b"1")
    first = store.modified("a")
    deadline = time.monotonic() + 20
    while store.modified("a") <= first and time.monotonic() < deadline:
        time.sleep(0.05)
        store.put("a", b"2")
    assert store.modified("a") > first


def test_names_are_keys_below_a_prefix_in_order(store):
    for key in ("r/b/2", "r/b/1", "r/a", "r/z", "rb/1", "s/x"):
        store.put(key, b"")
    assert store.names("r") == ["r/a", "r/b/1", "r/b/2", "r/z"]
    assert store.names("r/b") == ["r/b/1", "r/b/2"]
    assert store.names("") == ["r/a", "r/b/1", "r/b/2", "r/z", "rb/1", "s/x"]
    assert store.names("nothing") == []


def test_sizes_are_those_of_contents(store):
    store.put("r/a", b"123")
    store.put("r/b", b"")
    assert store.sizes("r") == {"r/a": 3, "r/b": 0}


def test_listings_have_no_end_at_a_page(store):
    keys = [f"r/{number:05d}" for number in range(1100)]
    others = [
        threading.Thread(target=lambda part=part: [store.put(key, b"") for key in keys[part::8]]) for part in range(8)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert store.names("r") == keys
    store.delete_many(keys[:-1])
    assert store.names("r") == keys[-1:]


def test_folders_are_those_right_below_the_root(store):
    assert store.folders() == []
    for key in ("b/deep/1", "a/2", "file"):
        store.put(key, b"")
    assert store.folders() == ["a", "b"]


def test_deleting_twice_is_allowed(store):
    store.put("x", b"")
    store.delete("x")
    store.delete("x")
    assert store.get("x") is None


def test_many_are_read_in_order_and_deleted(store):
    keys = [f"r/{number}" for number in range(30)]
    for key in keys[::2]:
        store.put(key, key.encode())
    found = list(store.get_many(reversed(keys)))
    assert [key for key, _ in found] == keys[::-1]
    assert all(data == (key.encode() if int(key[2:]) % 2 == 0 else None) for key, data in found)
    store.delete_many(iter(keys))
    store.delete_many([])
    assert store.names("") == []


def test_objects_are_copied_between_stores(store, sibling):
    other = sibling()
    other.put("a/1", b"one")
    store.put("b/1", b"old")
    for _ in range(2):
        store.copy(other, "a/1", "b/1")
    other.put("a/1", b"another")
    assert store.get("b/1") == b"one"
    assert store.names("") == ["b/1"]
    assert store.debris() == {}
    with pytest.raises(NotFoundError, match="a/2"):
        store.copy(other, "a/2", "b/2")
    assert store.names("") == ["b/1"]


def test_objects_are_copied_from_any_other_store(store, tmp_path):
    local, memory = open_store(tmp_path / "elsewhere"), open_store(f"memory://{tmp_path.name}/elsewhere")
    for number, other in enumerate((local, memory)):
        other.put("a", b"far")
        store.copy(other, "a", f"from/{number}")
        other.copy(store, f"from/{number}", "back")
        assert store.get(f"from/{number}") == other.get("back") == b"far"
        with pytest.raises(NotFoundError):
            store.copy(other, "b", "c")


def test_names_that_could_mean_something_outside_are_refused_everywhere(store):
    store.put("a", b"1")
    calls = [
        lambda key: store.put(key, b""),
        lambda key: store.put_new(key, b""),
        store.get,
        store.get_writable,
        lambda key: list(store.get_many([key])),
        store.exists,
        store.modified,
        store.delete,
        lambda key: store.delete_many([key]),
        lambda key: store.copy(store, "a", key),
        lambda key: store.copy(store, key, "b"),
    ]
    for key in BAD_KEYS:
        for call in [*calls, store.sizes] if key else calls:
            with pytest.raises(StorageError, match="not the name of an object"):
                call(key)
    assert store.names("") == ["a"]


def test_names_are_taken_as_they_are(store):
    for number, key in enumerate(ODD_KEYS):
        store.put(f"odd/{key}", str(number).encode())
        assert not store.put_new(f"odd/{key}", b"again")
    assert store.names("odd") == sorted(f"odd/{key}" for key in ODD_KEYS)
    for number, key in enumerate(ODD_KEYS):
        assert store.get(f"odd/{key}") == str(number).encode()
        assert store.exists(f"odd/{key}")
    store.delete(f"odd/{ODD_KEYS[0]}")
    store.delete_many([f"odd/{key}" for key in ODD_KEYS[1:]])
    assert store.names("") == []


def test_of_many_racing_threads_exactly_one_creates(store, racers):
    for attempt in range(ROUNDS):
        barrier, won = threading.Barrier(racers), []

        def race(number, barrier=barrier, won=won, key=f"epoch/{attempt}"):
            barrier.wait()
            if store.put_new(key, str(number).encode() * 1000):
                won.append(number)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(racers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get(f"epoch/{attempt}") == str(won[0]).encode() * 1000


def test_readers_never_see_a_part_of_an_object(store):
    contents = [bytes([number]) * 200_000 for number in range(2)]
    store.put("a", contents[0])
    stop, torn = threading.Event(), []

    def read():
        while not stop.is_set():
            if store.get("a") not in contents:
                torn.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(20):
        store.put("a", contents[number % 2])
    stop.set()
    reader.join()
    assert not torn


def test_the_probe_before_a_run_finds_the_store_good_and_leaves_nothing(store):
    found = open_for_writing(store.url, StoreConfig())
    assert type(found) is type(store)
    assert found.names("") == []
    assert type(open_for_writing(store.url, StoreConfig(single_writer=True))) is type(store)
