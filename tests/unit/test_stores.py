"""The contract of every store: what is new is created once, what is read is whole."""

import os
import threading
import uuid

import pytest

from ntkpipe.configs.errors import ConfigError, NotFoundError, StorageError
from ntkpipe.storage.stores.fsspec_store import FsspecRunStore
from ntkpipe.storage.stores.local import LocalRunStore
from ntkpipe.storage.stores.registry import open_store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return open_store(tmp_path / "run" if request.param == "local" else f"memory://{uuid.uuid4().hex}/run")


def test_what_is_put_is_got(store):
    store.put("a/b.json", b"1")
    store.put("a/b.json", b"22")
    assert store.get("a/b.json") == b"22"
    assert store.get("a/c.json") is None
    assert store.get("a") is None
    with pytest.raises(NotFoundError, match=r"has no a/c\.json"):
        store.read("a/c.json")


def test_a_new_object_is_created_once(store):
    assert store.put_new("lock/1", b"first")
    assert not store.put_new("lock/1", b"second")
    assert store.get("lock/1") == b"first"


def test_names_are_keys_below_a_prefix_in_order(store):
    for key in ("r/b/2", "r/b/1", "r/a", "s/x"):
        store.put(key, b"")
    assert store.names("r") == ["r/a", "r/b/1", "r/b/2"]
    assert store.names("nothing") == []


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


def test_of_many_racing_writers_exactly_one_creates(store):
    for attempt in range(25):
        barrier, won = threading.Barrier(8), []

        def race(number, barrier=barrier, won=won, key=f"epoch/{attempt}"):
            barrier.wait()
            if store.put_new(key, str(number).encode() * 1000):
                won.append(number)

        threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.get(f"epoch/{attempt}") == str(won[0]).encode() * 1000


def test_local_files_being_written_are_not_listed_and_not_left_behind(tmp_path):
    store = LocalRunStore(tmp_path)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "a.123.partial").write_bytes(b"half")
    store.put_new("r/a", b"")
    store.put_new("r/a", b"")
    assert store.names("r") == ["r/a"]
    assert sorted(os.listdir(tmp_path / "r")) == ["a", "a.123.partial"]


def test_urls_map_to_stores(tmp_path):
    assert isinstance(open_store(f"file://{tmp_path}"), LocalRunStore)
    assert open_store(f"file://{tmp_path}").url == str(tmp_path)
    memory = open_store("memory://a/b")
    assert isinstance(memory, FsspecRunStore)
    assert not memory.shared
    assert open_store(tmp_path).shared


@pytest.mark.parametrize(
    ("url", "match"), [("http://x/y", "unknown URL scheme 'http'"), ("s3://", "names no folder or bucket")]
)
def test_urls_that_cannot_hold_a_run_are_refused(url, match):
    with pytest.raises(ConfigError, match=match):
        open_store(url)


@pytest.fixture
def unwritable(tmp_path):
    """A folder in which this process may not write; root, who may write everywhere, gives its rights up for a while."""
    tmp_path.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(user)
    tmp_path.chmod(0o700)


def test_a_folder_without_permission_is_named(unwritable):
    with pytest.raises(StorageError, match="permission denied"):
        open_store(unwritable / "run").put("a", b"")
